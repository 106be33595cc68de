//! The program and its maps in the kernel: loaded once for each worker, so that workers share nothing.
//!
//! This module knows which socket stands in which slot, and nothing of frames.
//!
//! Invariants that the unsafe blocks rely on:
//!
//! 1. `Shared` maps `count` entries from its beginning until it is dropped. The kernel and this process
//!    read and write them only as 64-bit atomics; any octets are a valid entry.
//! 2. A socket's run of the program happens with the socket locked, and the kernel locks it to fill in
//!    `TCP_INFO`. So when that returns, no run is under way that found the slot before it was deleted
//!    from `slots`, and the record can be another connection's.

#![expect(unsafe_code, reason = "memory is shared with the kernel; see the invariants above")]

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use aya::maps::{HashMap, Map, MapData, MapError, RingBuf, SockMap};
use aya::programs::{ProgramError, SkSkb};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};

use super::record::{Record, Totals};
use super::{PLACES, Place};
use crate::metrics::{EchoCounts, Echoed};

/// What a notice takes of the ring: a header of 8 octets, and the slot rounded up to as much.
const NOTICE_BYTES: u32 = 16;

/// Where the kernel describes its types; the program needs the places of four fields.
const TYPES: &str = "/sys/kernel/btf/vmlinux";

static OBJECT: &[u8] = aya::include_bytes_aligned!("verdict.bpf.o");

/// Why echoes cannot be offloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OffloadError {
    /// This process may not load programs.
    Forbidden,
    /// The kernel was built without a description of its types.
    Typeless,
    /// The kernel's verifier refused the program, with these last words.
    Refused(String),
    /// Something else went wrong.
    Failed(String),
}

impl fmt::Display for OffloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OffloadError::Forbidden => f.write_str(
                "not allowed to load a BPF program; run as root, or give the binary what it needs: \
                 sudo setcap cap_bpf,cap_net_admin,cap_perfmon=ep PATH-OF-RINGECHO",
            ),
            OffloadError::Typeless => {
                write!(f, "the kernel has no {TYPES}; it needs CONFIG_DEBUG_INFO_BTF")
            }
            OffloadError::Refused(words) => {
                write!(f, "the kernel refused the program; a newer one may take it ({words})")
            }
            OffloadError::Failed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for OffloadError {}

impl From<EbpfError> for OffloadError {
    fn from(error: EbpfError) -> OffloadError {
        match error {
            EbpfError::MapError(error) => error.into(),
            EbpfError::ProgramError(error) => error.into(),
            error => OffloadError::Failed(format!("cannot load the BPF object: {}", chain(&error))),
        }
    }
}

impl From<MapError> for OffloadError {
    fn from(error: MapError) -> OffloadError {
        OffloadError::failed("cannot set up a BPF map", &error)
    }
}

impl From<ProgramError> for OffloadError {
    fn from(error: ProgramError) -> OffloadError {
        if let ProgramError::LoadError { io_error, verifier_log } = &error
            && !is_refused_permission(io_error)
        {
            let log = verifier_log.to_string();
            let mut lines = log.lines().map(str::trim).filter(|line| {
                // Behind the reason stand the statistics.
                !line.is_empty()
                    && !["processed", "verification", "stack"]
                        .iter()
                        .any(|word| line.starts_with(word))
            });
            let words = lines.next_back().map_or_else(|| io_error.to_string(), str::to_owned);
            return OffloadError::Refused(words);
        }
        OffloadError::failed("cannot load the BPF program", &error)
    }
}

impl OffloadError {
    fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> OffloadError {
        let mut causes = std::iter::successors(Some(error), |error| error.source());
        if causes.any(|cause| cause.downcast_ref().is_some_and(is_refused_permission)) {
            return OffloadError::Forbidden;
        }
        OffloadError::Failed(format!("{what}: {}", chain(error)))
    }
}

/// `EPERM`, that is; with `EACCES` the verifier refuses a program (bpf(2)).
fn is_refused_permission(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::PERM)
}

/// An error and its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(|cause| cause.to_string().replace('\n', " ")).collect::<Vec<_>>().join(": ")
}

/// The program of one worker, with its maps.
pub struct Program {
    sockets: SockMap<MapData>,
    slots: HashMap<MapData, u64, u32>,
    notices: RingBuf<MapData>,
    records: Shared<Record>,
    totals: Arc<Shared<Totals>>,
    free: Vec<u32>,
    /// The cookie of the socket at each place.
    cookies: Vec<u64>,
    /// Holds the program; when it is dropped, the sockets are ordinary ones again.
    _program: Ebpf,
}

impl Program {
    /// System calls of [`Program::attach`], of [`Program::detach`], of [`Program::written`] and of
    /// [`Program::written_exactly`].
    pub const ATTACH_CALLS: u64 = 6;
    #[expect(missing_docs, reason = "documented with the first")]
    pub const DETACH_CALLS: u64 = 3;
    #[expect(missing_docs, reason = "documented with the first")]
    pub const WRITTEN_CALLS: u64 = 2;
    #[expect(missing_docs, reason = "documented with the first")]
    pub const WRITTEN_EXACTLY_CALLS: u64 = 4;

    /// Loads the program, with room for [`PLACES`] connections.
    ///
    /// # Errors
    ///
    /// When this process or this kernel cannot; the error says what to do, in one line.
    pub fn load() -> Result<Program, OffloadError> {
        // The verifier's log makes loading many times slower, so it is asked for when it is needed.
        match Program::with_places(PLACES, VerifierLogLevel::empty()) {
            Err(OffloadError::Refused(_)) => Program::with_places(PLACES, VerifierLogLevel::DEBUG),
            outcome => outcome,
        }
    }

    fn with_places(places: u32, log: VerifierLogLevel) -> Result<Program, OffloadError> {
        if !fs::exists(TYPES).unwrap_or(false) {
            return Err(OffloadError::Typeless);
        }
        // Room for a notice of each slot, and a ring is never filled to its last octet.
        let page = u32::try_from(rustix::param::page_size()).expect("a page is small");
        let ring = (places * NOTICE_BYTES * 2).next_power_of_two().max(page);
        let mut program = EbpfLoader::new()
            .map_max_entries("sockets", places)
            .map_max_entries("slots", places)
            .map_max_entries("records", places)
            .map_max_entries("notices", ring)
            .verifier_log_level(log)
            .load(OBJECT)?;
        let sockets = SockMap::try_from(take(&mut program, "sockets"))?;
        let slots = HashMap::try_from(take(&mut program, "slots"))?;
        let notices = RingBuf::try_from(take(&mut program, "notices"))?;
        let records = share(&program, "records", places)?;
        let totals = Arc::new(share(&program, "totals", 1)?);
        let verdict: &mut SkSkb =
            program.program_mut("verdict").expect("is in the object").try_into()?;
        verdict.load()?;
        verdict.attach(sockets.fd())?;
        let free = (0..places).rev().collect();
        let cookies = vec![0; places as usize];
        Ok(Program { sockets, slots, notices, records, totals, free, cookies, _program: program })
    }

    /// What the program has echoed on all connections, readable even when the program is gone.
    pub fn totals(&self) -> Arc<dyn EchoCounts> {
        self.totals.clone()
    }

    /// Shows the program what comes on a connected TCP socket from now on. The gate is shut. `None` when
    /// all places are taken. What the kernel has queued before is shown too, from its first octet, with
    /// the first packet or receive that follows; so none of that may have been received in part.
    ///
    /// # Errors
    ///
    /// When the kernel does not take it, as with a socket that is not TCP or whose peer has already ended.
    pub fn attach(&mut self, socket: BorrowedFd<'_>) -> io::Result<Option<Place>> {
        let Some(&index) = self.free.last() else { return Ok(None) };
        self.records.at(index).reset();
        // The kernel would take sockets of other kinds too, Unix ones for one.
        tcp_info(socket)?;
        let cookie = rustix::net::sockopt::socket_cookie(socket)?;
        // In this order: a packet that the program sees is counted from the first.
        self.slots.insert(cookie, index, 0).map_err(cause)?;
        if let Err(error) = self.sockets.set(index, &socket.as_raw_fd(), 0) {
            let _ = self.slots.remove(&cookie);
            return Err(cause(error));
        }
        self.free.pop();
        self.cookies[index as usize] = cookie;
        Ok(Some(Place(index)))
    }

    /// Takes the place of a socket back that is about to be closed. Echoes that the kernel has not sent
    /// may be lost, and what comes is not counted any more.
    pub fn detach(&mut self, place: Place, socket: BorrowedFd<'_>) {
        let Place(index) = place;
        self.records.at(index).shut();
        let _ = self.slots.remove(&self.cookies[index as usize]);
        // Invariant 2. The entry in `sockets` goes when the socket is closed or the next one takes its
        // place; if it went now, what is still to be sent would go with it.
        if tcp_info(socket).is_ok() {
            self.free.push(index);
        }
    }

    /// What both sides know of a connection.
    #[inline]
    pub fn record(&self, place: &Place) -> &Record {
        self.records.at(place.0)
    }

    /// Is readable when there are notices.
    pub fn notices(&self) -> BorrowedFd<'_> {
        self.notices.as_fd()
    }

    /// Takes the notices that there are: calls `each` with the number of a place for which something was
    /// passed up. It may be an earlier connection's, and what was passed up may have been received
    /// already.
    pub fn take_notices(&mut self, mut each: impl FnMut(u32)) {
        while let Some(notice) = self.notices.next() {
            let index = u32::from_ne_bytes((*notice).try_into().expect("a notice is one slot"));
            // It leaves the ring before the next one may be sent.
            drop(notice);
            self.records.at(index).take_notice();
            each(index);
        }
    }

    /// How many octets the kernel has been given for sending on a TCP socket, since its beginning. While
    /// acknowledgements arrive it may be too low, and never too high.
    ///
    /// # Errors
    ///
    /// When it is not a TCP socket, or the connection is gone, as by a reset: what the kernel had not sent
    /// or given up then, it never will.
    pub fn written(socket: BorrowedFd<'_>) -> io::Result<u64> {
        let TcpInfo { state, bytes_acked, .. } = tcp_info(socket)?;
        if state == TCP_CLOSE {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(bytes_acked + octets_unacknowledged(socket)?)
    }

    /// The same, but never too low; `None` when acknowledgements arrive at this moment, so that it cannot be
    /// known.
    ///
    /// # Errors
    ///
    /// As with [`Program::written`].
    pub fn written_exactly(socket: BorrowedFd<'_>) -> io::Result<Option<u64>> {
        let least = Program::written(socket)?;
        // In this order it may be too high.
        let most = octets_unacknowledged(socket)? + tcp_info(socket)?.bytes_acked;
        Ok((least == most).then_some(least))
    }
}

fn take(program: &mut Ebpf, name: &str) -> Map {
    program.take_map(name).expect("is in the object")
}

/// The kernel's answer, from among what is said around it.
fn cause(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        error => io::Error::other(error),
    }
}

/// `struct tcp_info` (linux/tcp.h) as far as it is needed.
#[repr(C)]
struct TcpInfo {
    state: u8,
    between: [u8; 119],
    bytes_acked: u64,
}

/// The state of a connection that is gone (netinet/tcp.h).
const TCP_CLOSE: u8 = 7;

fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let mut info = TcpInfo { state: 0, between: [0; 119], bytes_acked: 0 };
    let mut length = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` octets into `info`, and any octets are valid there.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    match outcome {
        0 if length as usize == size_of::<TcpInfo>() => Ok(info),
        0 => Err(io::ErrorKind::Unsupported.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `SIOCOUTQ` (tcp(7)).
fn octets_unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut octets: libc::c_int = 0;
    // SAFETY: this request writes an int.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut octets) };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(octets).unwrap_or(0))
}

fn share<T>(program: &Ebpf, name: &str, count: u32) -> Result<Shared<T>, OffloadError> {
    // It stays there: the program is loaded by its descriptor.
    let Some(Map::Array(array)) = program.map(name) else { panic!("{name} is an array") };
    Shared::new(array.fd().as_fd(), count)
        .map_err(|error| OffloadError::failed("cannot map what the program counts", &error))
}

/// The mapping of an array of `T`, which is made of 64-bit atomics alone.
#[derive(Debug)]
struct Shared<T> {
    start: NonNull<T>,
    count: u32,
}

// SAFETY: it is memory of atomics, which any thread may use.
unsafe impl<T: Sync> Sync for Shared<T> {}

// SAFETY: a mapping is the process's, and any thread may give it up.
unsafe impl<T: Sync> Send for Shared<T> {}

impl EchoCounts for Shared<Totals> {
    fn read(&self) -> Echoed {
        self.at(0).read()
    }
}

impl<T> Shared<T> {
    fn new(map: BorrowedFd<'_>, count: u32) -> io::Result<Shared<T>> {
        let length = count as usize * size_of::<T>();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start =
            unsafe { mm::mmap(ptr::null_mut(), length, protection, MapFlags::SHARED, map, 0)? };
        Ok(Shared { start: NonNull::new(start.cast()).expect("mmap returns no null"), count })
    }

    #[inline]
    fn at(&self, index: u32) -> &T {
        assert!(index < self.count);
        // SAFETY: invariant 1 and the assertion.
        let entry = unsafe { self.start.add(index as usize) };
        // SAFETY: invariant 1.
        unsafe { entry.as_ref() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let length = self.count as usize * size_of::<T>();
        // SAFETY: invariant 1; entries are borrowed from this value, so none is left.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), length) };
    }
}
