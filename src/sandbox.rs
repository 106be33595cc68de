//! Locks a thread down once it has all that it needs.
//!
//! From then on the thread makes only the system calls that it still has a use for (seccomp(2)). It reads and writes
//! only where it still has to, and reaches no address (landlock(7)). It has no capability but those that reach
//! its own files (capabilities(7)). What the kernel cannot enforce is left out and reported, so that a thread is
//! always locked down as far as this kernel allows.
//!
//! A sandbox belongs to the thread that enters it and to the threads which that one starts afterwards. So a worker,
//! which handles what peers send, keeps less than the threads that write files. Threads share their memory, though:
//! `docs/operations.md` says what remains.
//!
//! A system call that is not among those kept fails with `EPERM`. One that was forgotten, or that a new C library
//! makes, then costs a feature and not the server. A call that only an intruder would make ([`FATAL`]) ends the
//! process instead: whoever got that far has no second try, and the kernel logs it.
//!
//! This module does not know who needs what. Each module names the calls that it makes after the start, beside the
//! code that makes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope,
    make_bitflags,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Whether threads lock themselves down.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// They keep all their rights.
    Off,
    /// As far as the kernel can enforce it.
    #[default]
    On,
}

/// A system call that a thread still makes, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// With any arguments.
    Any(i64),
    /// With one of these values, of 32 bits, as the argument at this position, counted from 0.
    With(i64, u8, &'static [u32]),
    /// With none of these bits in the argument at this position.
    Without(i64, u8, u32),
}

/// `PROT_EXEC` (mmap(2)).
const EXECUTABLE: u32 = libc::PROT_EXEC as u32;
/// `SIGABRT`.
const ABORT: &[u32] = &[libc::SIGABRT as u32];

/// What every thread goes on doing: it takes and returns memory that is not executable, waits for other threads,
/// reads the clock, prints, and ends.
const BASIC: &[Call] = &[
    Call::Without(libc::SYS_mmap, 2, EXECUTABLE),
    Call::Without(libc::SYS_mprotect, 2, EXECUTABLE),
    Call::Any(libc::SYS_munmap),
    Call::Any(libc::SYS_mremap),
    Call::Any(libc::SYS_madvise),
    Call::Any(libc::SYS_brk),
    Call::Any(libc::SYS_futex),
    Call::Any(libc::SYS_sched_yield),
    // The memory allocator asks how many CPUs there are.
    Call::Any(libc::SYS_sched_getaffinity),
    Call::Any(libc::SYS_clock_gettime),
    Call::Any(libc::SYS_clock_nanosleep),
    Call::Any(libc::SYS_nanosleep),
    Call::Any(libc::SYS_restart_syscall),
    // The keys of hash tables.
    Call::Any(libc::SYS_getrandom),
    Call::Any(libc::SYS_read),
    Call::Any(libc::SYS_write),
    Call::Any(libc::SYS_writev),
    Call::Any(libc::SYS_close),
    // Debug builds of the standard library check a descriptor before they close it.
    Call::With(libc::SYS_fcntl, 1, &[libc::F_GETFD as u32]),
    // A handler runs on whichever thread the kernel chooses, and wakes the thread that obeys signals.
    Call::Any(libc::SYS_sendto),
    Call::Any(libc::SYS_rt_sigreturn),
    Call::Any(libc::SYS_rt_sigprocmask),
    Call::Any(libc::SYS_sigaltstack),
    // A panic ends the process with SIGABRT, whose handler abort(3) resets.
    Call::Any(libc::SYS_rt_sigaction),
    Call::Any(libc::SYS_getpid),
    Call::Any(libc::SYS_gettid),
    Call::With(libc::SYS_tgkill, 2, ABORT),
    Call::With(libc::SYS_tkill, 1, ABORT),
    Call::Any(libc::SYS_exit),
    Call::Any(libc::SYS_exit_group),
];

/// What nothing in this program does once it serves, whatever its options: it becomes no other program, looks into no
/// other process, changes neither the kernel nor its name spaces, and sets up no ring, which no filter would see.
pub const FATAL: &[Call] = &[
    Call::Any(libc::SYS_execve),
    Call::Any(libc::SYS_execveat),
    Call::Any(libc::SYS_ptrace),
    Call::Any(libc::SYS_process_vm_readv),
    Call::Any(libc::SYS_process_vm_writev),
    Call::Any(libc::SYS_pidfd_getfd),
    Call::Any(libc::SYS_init_module),
    Call::Any(libc::SYS_finit_module),
    Call::Any(libc::SYS_delete_module),
    Call::Any(libc::SYS_kexec_load),
    Call::Any(libc::SYS_mount),
    Call::Any(libc::SYS_move_mount),
    Call::Any(libc::SYS_umount2),
    Call::Any(libc::SYS_pivot_root),
    Call::Any(libc::SYS_chroot),
    Call::Any(libc::SYS_setns),
    Call::Any(libc::SYS_unshare),
    Call::Any(libc::SYS_userfaultfd),
    Call::Any(libc::SYS_perf_event_open),
    Call::Any(libc::SYS_keyctl),
    Call::Any(libc::SYS_add_key),
    Call::Any(libc::SYS_request_key),
    Call::Any(libc::SYS_io_uring_setup),
];

/// What a thread does with a path after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Reads files in the directory that it is.
    Read,
    /// Writes the file that it is.
    Write,
    /// Creates, writes, replaces and removes files in the directory that it is.
    Manage,
    /// Removes files in the directory that it is.
    Remove,
}

impl Access {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Access::Read => make_bitflags!(AccessFs::{ReadFile}),
            Access::Write => make_bitflags!(AccessFs::{WriteFile | Truncate}),
            Access::Manage => {
                make_bitflags!(AccessFs::{WriteFile | Truncate | MakeReg | RemoveFile})
            }
            Access::Remove => make_bitflags!(AccessFs::{RemoveFile}),
        }
    }
}

/// What a thread still needs. By default, what every thread does.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Needs {
    calls: Vec<Call>,
    places: Vec<(PathBuf, Access)>,
}

impl Needs {
    /// These system calls too.
    #[must_use]
    pub fn calling(mut self, calls: &[Call]) -> Needs {
        self.calls.extend(calls);
        self
    }

    /// Reading files in this directory, and below it, too.
    #[must_use]
    pub fn reading_in(self, directory: &Path) -> Needs {
        self.reaching(directory, Access::Read)
    }

    /// Writing this file too, which may be a device.
    #[must_use]
    pub fn writing(self, file: &Path) -> Needs {
        self.reaching(file, Access::Write)
    }

    /// Creating, writing, replacing and removing files in this directory too.
    #[must_use]
    pub fn managing(self, directory: &Path) -> Needs {
        self.reaching(directory, Access::Manage)
    }

    /// Removing files in this directory too.
    #[must_use]
    pub fn removing_in(self, directory: &Path) -> Needs {
        self.reaching(directory, Access::Remove)
    }

    fn reaching(mut self, path: &Path, access: Access) -> Needs {
        self.places.push((path.to_owned(), access));
        self
    }

    /// What both need.
    #[must_use]
    pub fn and(mut self, other: Needs) -> Needs {
        self.calls.extend(other.calls);
        self.places.extend(other.places);
        self
    }

    /// The capabilities that let root reach files of other users, for a thread that has files to reach.
    fn capabilities(&self) -> CapabilitySet {
        let of_place = |(_, access): &(PathBuf, Access)| match access {
            Access::Read => CapabilitySet::DAC_READ_SEARCH,
            Access::Write | Access::Manage | Access::Remove => {
                CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER
            }
        };
        self.places.iter().map(of_place).fold(CapabilitySet::empty(), CapabilitySet::union)
    }
}

/// What the kernel enforces of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enforced {
    /// The version of Landlock's interface, such as `V7`, if there is Landlock.
    pub landlock: Option<String>,
    /// What is not enforced, and why: a part of a sentence for each.
    pub missing: Vec<String>,
}

/// Locks the calling thread down for good: it keeps only what it needs.
pub fn enter(needs: &Needs) -> Enforced {
    let mut missing = Vec::new();
    let landlock = match restrict(&needs.places) {
        Ok(RestrictionStatus {
            landlock: LandlockStatus::Available { effective_abi, .. }, ..
        }) => Some(format!("{effective_abi:?}")),
        Ok(RestrictionStatus { landlock: LandlockStatus::NotEnabled, .. }) => {
            missing.push("Landlock is switched off (kernel parameter lsm=)".to_owned());
            None
        }
        Ok(RestrictionStatus { landlock: LandlockStatus::NotImplemented, .. }) => {
            missing.push("this kernel has no Landlock, which came with Linux 5.13".to_owned());
            None
        }
        Err(error) => {
            missing.push(format!("Landlock refuses: {error}"));
            None
        }
    };
    if let Err(error) = keep_capabilities(needs.capabilities()) {
        missing.push(format!("capabilities cannot be dropped: {error}"));
    }
    let basic_and = || BASIC.iter().chain(&needs.calls).copied();
    let permission = SeccompAction::Errno(libc::EPERM as u32);
    // The most severe verdict of all filters is carried out. The filter of what is kept comes last, as it lets no
    // further one be added.
    let filtered = filter(FATAL.iter().copied(), SeccompAction::KillProcess, SeccompAction::Allow)
        .and_then(|fatal| Ok((fatal, filter(basic_and(), SeccompAction::Allow, permission)?)))
        .map_err(|error| error.to_string())
        .and_then(|(fatal, kept)| {
            [fatal, kept]
                .iter()
                .try_for_each(|filter| seccompiler::apply_filter(filter))
                .map_err(|error| error.to_string())
        });
    if let Err(error) = filtered {
        missing.push(format!("there is no filter of system calls: {error}"));
    }
    Enforced { landlock, missing }
}

/// Leaves the thread no access to files but to `places`, no TCP port, no abstract Unix socket and no signal to
/// other processes. Also sets `PR_SET_NO_NEW_PRIVS`, without which neither this nor a filter is allowed.
fn restrict(places: &[(PathBuf, Access)]) -> Result<RestrictionStatus, RulesetError> {
    // The newest interface that adds rights which matter here; an older kernel enforces what it knows of it.
    const NEWEST: ABI = ABI::V6;
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for (path, access) in places {
        // What is gone needs no rule.
        if let Ok(place) = PathFd::new(path) {
            ruleset = ruleset.add_rule(PathBeneath::new(place, access.rights()))?;
        }
    }
    ruleset.restrict_self()
}

/// Drops all capabilities but those of `kept` that the thread has.
fn keep_capabilities(kept: CapabilitySet) -> rustix::io::Result<()> {
    let kept = capabilities(None)?.permitted & kept;
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })
}

/// A filter with one verdict on `calls` and another on all others. It looks at no argument of a [`Call::Any`], so
/// that the kernel need not even run it: it knows the verdict by the number (Linux 5.11).
fn filter(
    calls: impl Iterator<Item = Call> + Clone,
    on_calls: SeccompAction,
    on_others: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls.clone() {
        match call {
            Call::Any(_) => {}
            Call::With(number, position, values) => {
                for &value in values {
                    let rule = rule(position, SeccompCmpOp::Eq, value)?;
                    rules.entry(number).or_default().push(rule);
                }
            }
            Call::Without(number, position, bits) => {
                let rule = rule(position, SeccompCmpOp::MaskedEq(bits.into()), 0)?;
                rules.entry(number).or_default().push(rule);
            }
        }
    }
    for call in calls {
        if let Call::Any(number) = call {
            // No rule means any arguments, whatever others need.
            rules.insert(number, Vec::new());
        }
    }
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, on_others, on_calls, architecture)?.try_into()
}

/// Compares the lower 32 bits of an argument.
fn rule(position: u8, comparison: SeccompCmpOp, value: u32) -> Result<SeccompRule, BackendError> {
    let length = SeccompCmpArgLen::Dword;
    SeccompRule::new(vec![SeccompCondition::new(position, length, comparison, value.into())?])
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    use std::process::Command;
    use std::thread;

    use rustix::fs::fcntl_getfl;
    use rustix::io::{Errno, fcntl_getfd};
    use testkit::say;

    use super::*;

    /// The result of `call` on a thread of its own, in a sandbox; nothing where this kernel cannot enforce all of it.
    fn within<T: Send>(test: &str, needs: Needs, call: impl FnOnce() -> T + Send) -> Option<T> {
        let outcome = thread::scope(|scope| {
            let sandboxed = scope.spawn(|| {
                let Enforced { missing, .. } = enter(&needs);
                if missing.is_empty() { Ok(call()) } else { Err(missing) }
            });
            sandboxed.join().expect("a thread that ends")
        });
        outcome.map_err(|missing| say(&format!("SKIPPED: {test}: {missing:?}"))).ok()
    }

    #[track_caller]
    fn assert_refused<T>(outcome: io::Result<T>, errno: Errno) {
        let error = outcome.err().expect("it is refused");
        assert_eq!(Errno::from_io_error(&error), Some(errno), "{error}");
    }

    #[test]
    fn a_thread_goes_on_with_what_every_thread_does() {
        let count = within("a_thread_goes_on", Needs::default(), || {
            let mut memory = vec![1_u8; 1 << 20];
            for _ in 0..6 {
                memory.extend_from_within(..);
            }
            let tables: Vec<_> = (0..100)
                .map(|number| std::collections::HashMap::from([(number, memory.len())]))
                .collect();
            thread::sleep(std::time::Duration::from_millis(1));
            thread::yield_now();
            println!("{} bytes", memory.len());
            tables.len()
        });
        assert!(count.is_none_or(|count| count == 100));
    }

    #[test]
    fn calls_that_are_not_kept_fail() {
        within("calls_that_are_not_kept_fail", Needs::default(), || {
            assert_refused(File::open("/proc/self/status"), Errno::PERM);
            assert_refused(UnixStream::pair(), Errno::PERM);
            assert_refused(TcpListener::bind("127.0.0.1:0"), Errno::PERM);
            assert_refused(thread::Builder::new().spawn(|| {}), Errno::PERM);
            assert_refused(fs::create_dir("never"), Errno::PERM);
            let own = rustix::process::getpid();
            let signal = rustix::process::Signal::USR1;
            assert_eq!(rustix::process::kill_process(own, signal), Err(Errno::PERM));
            assert_eq!(rustix::process::test_kill_process(own), Err(Errno::PERM));
        });
    }

    #[test]
    fn arguments_are_looked_at() {
        const GET_FLAGS: &[Call] = &[Call::With(libc::SYS_fcntl, 1, &[libc::F_GETFL as u32])];
        let file = File::open("/dev/null").expect("a device");
        within("arguments_are_looked_at", Needs::default(), || {
            fcntl_getfd(&file).expect("every thread may");
            assert_eq!(fcntl_getfl(&file), Err(Errno::PERM));
        });
        within("arguments_are_looked_at", Needs::default().calling(GET_FLAGS), || {
            fcntl_getfd(&file).expect("every thread may");
            fcntl_getfl(&file).expect("this one may");
            assert_refused(file.try_clone(), Errno::PERM);
        });
        let any = Needs::default().calling(GET_FLAGS).calling(&[Call::Any(libc::SYS_fcntl)]);
        within("arguments_are_looked_at", any, || file.try_clone().expect("this one may do all"));
    }

    /// The calls with which this test works on files.
    const FILES: &[Call] = &[
        Call::Any(libc::SYS_openat),
        Call::Any(libc::SYS_renameat),
        Call::Any(libc::SYS_renameat2),
        Call::Any(libc::SYS_unlinkat),
        Call::Any(libc::SYS_ftruncate),
        #[cfg(target_arch = "x86_64")]
        Call::Any(libc::SYS_rename),
        #[cfg(target_arch = "x86_64")]
        Call::Any(libc::SYS_unlink),
    ];

    #[test]
    fn files_are_written_only_where_that_is_needed() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = |name: &str| directory.path().join(name);
        for name in ["managed", "removable", "other"] {
            fs::create_dir(place(name)).expect("a directory");
            fs::write(place(name).join("file"), "text").expect("a file");
        }
        fs::write(place("alone"), "text").expect("a file");
        let needs = Needs::default()
            .calling(FILES)
            .managing(&place("managed"))
            .removing_in(&place("removable"))
            .writing(&place("alone"))
            .managing(&place("gone"));
        within("files_are_written_only_where_that_is_needed", needs, || {
            let create = |name: &str| File::create(place(name));
            create("managed/new").expect("it may be created");
            create("managed/file").expect("it may be written");
            fs::rename(place("managed/new"), place("managed/file")).expect("it may be replaced");
            fs::remove_file(place("managed/file")).expect("it may be removed");
            fs::remove_file(place("removable/file")).expect("it may be removed");
            create("alone").expect("it may be written").set_len(1).expect("it may be cut");
            for name in ["removable/new", "other/new", "other/file", "new"] {
                assert_refused(create(name), Errno::ACCESS);
            }
            for name in ["alone", "other/file"] {
                assert_refused(fs::remove_file(place(name)), Errno::ACCESS);
                assert_refused(File::open(place(name)), Errno::ACCESS);
            }
        });
    }

    #[test]
    fn addresses_are_out_of_reach_even_with_a_socket() {
        const SOCKETS: &[Call] = &[
            Call::Any(libc::SYS_socket),
            Call::Any(libc::SYS_setsockopt),
            Call::Any(libc::SYS_bind),
            Call::Any(libc::SYS_listen),
            Call::Any(libc::SYS_connect),
        ];
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        within("addresses_are_out_of_reach", Needs::default().calling(SOCKETS), || {
            // Landlock restricts TCP from its fourth version on, with Linux 6.7.
            if crate::linux::running_version().is_some_and(|version| version >= (6, 7)) {
                assert_refused(TcpStream::connect(address), Errno::ACCESS);
                assert_refused(TcpListener::bind("127.0.0.1:0"), Errno::ACCESS);
            }
        });
    }

    #[test]
    fn capabilities_are_dropped_but_those_for_files() {
        let before = capabilities(None).expect("capabilities").permitted;
        let calls: &[Call] = &[Call::Any(libc::SYS_capget)];
        let kept = |needs: Needs| {
            within("capabilities_are_dropped", needs.calling(calls), || {
                let CapabilitySets { effective, permitted, inheritable } =
                    capabilities(None).expect("capabilities");
                assert_eq!((effective, inheritable), (permitted, CapabilitySet::empty()));
                permitted
            })
        };
        let empty = CapabilitySet::empty();
        assert!(kept(Needs::default()).is_none_or(|kept| kept == empty));
        let needs = Needs::default().managing(Path::new("."));
        let files = needs.capabilities() & before;
        assert!(kept(needs).is_none_or(|kept| kept == files));
        assert_eq!(capabilities(None).expect("capabilities").permitted, before, "another thread's");
    }

    /// Set for the process that [`an_intruders_call_ends_the_process`] starts.
    const INTRUDER: &str = "RINGECHO_TEST_INTRUDER";

    #[test]
    fn an_intruders_call_ends_the_process() {
        const NAME: &str = "an_intruders_call_ends_the_process";
        let needs = Needs::default();
        if std::env::var_os(INTRUDER).is_some() {
            within(NAME, needs, || Command::new("true").exec());
            // Only where it was skipped, or not killed.
            std::process::exit(0);
        }
        let Some(()) = within(NAME, needs, || ()) else { return };
        let name = format!("sandbox::tests::{NAME}");
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        let ended = command.args([&name, "--exact"]).env(INTRUDER, "1").output().expect("it runs");
        assert_eq!(ended.status.signal(), Some(libc::SIGSYS), "{ended:?}");
    }

    /// Set for the process that [`a_panic_is_told`] starts.
    const PANIC: &str = "RINGECHO_TEST_PANIC";

    #[test]
    fn a_panic_is_told() {
        const NAME: &str = "a_panic_is_told";
        if std::env::var_os(PANIC).is_some() {
            within(NAME, Needs::default(), || panic!("the words of a panic"));
        }
        if within(NAME, Needs::default(), || ()).is_none() {
            return;
        }
        let name = format!("sandbox::tests::{NAME}");
        for backtrace in ["0", "1"] {
            let mut command = Command::new(std::env::current_exe().expect("a path"));
            command.args([&name, "--exact", "--nocapture"]).env(PANIC, "1");
            let ended = command.env("RUST_BACKTRACE", backtrace).output().expect("it runs");
            let told = String::from_utf8_lossy(&ended.stderr);
            assert!(told.contains("the words of a panic"), "{backtrace}: {ended:?}");
            assert!(told.contains("src/sandbox.rs:"), "{backtrace}: {ended:?}");
        }
    }
}
