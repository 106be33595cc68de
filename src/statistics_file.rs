//! The file that `--stats-file` names.
//!
//! Writing leaves what a shell's `>` leaves: links are followed, devices and FIFOs are written
//! through, and an existing file keeps its mode, owner and other names. Where all of that can be
//! kept, the file is replaced in one step, so that a reader finds the old text or the new one; where
//! not, it is overwritten in place.
//!
//! Nothing here waits for long: a FIFO that nobody reads is an error, and a reader that stops reading
//! is given up after [`STREAM_WAIT_MAX`]. This module does not know what the text says.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use tempfile::{Builder, NamedTempFile};

use crate::sandbox::{Call, Needs};

/// How long one write may wait for the reader of a FIFO, pipe or terminal.
pub const STREAM_WAIT_MAX: Duration = Duration::from_secs(1);
/// Bytes that a pipe with any room takes without waiting: `PIPE_BUF` (pipe(7)).
const PIPE_BYTES: usize = 4096;
/// The mode of a new file, before the umask.
const NEW_FILE_MODE: u32 = 0o666;

/// The system calls of [`StatisticsFile::write`], those that the standard library and rustix use and those with which
/// C libraries stand in for them.
const CALLS: &[Call] = &[
    Call::Any(libc::SYS_openat),
    Call::Any(libc::SYS_statx),
    Call::Any(libc::SYS_fstat),
    Call::Any(libc::SYS_newfstatat),
    Call::Any(libc::SYS_lseek),
    Call::Any(libc::SYS_ftruncate),
    Call::Any(libc::SYS_fchown),
    Call::Any(libc::SYS_fchmod),
    Call::Any(libc::SYS_getxattr),
    Call::Any(libc::SYS_getcwd),
    Call::Any(libc::SYS_readlinkat),
    Call::Any(libc::SYS_renameat),
    Call::Any(libc::SYS_renameat2),
    Call::Any(libc::SYS_unlinkat),
    Call::Any(libc::SYS_ppoll),
    // Duplicates of standard output.
    Call::With(
        libc::SYS_fcntl,
        1,
        &[libc::F_DUPFD_CLOEXEC as u32, libc::F_GETFL as u32, libc::F_SETFD as u32],
    ),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_open),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_stat),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_lstat),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_readlink),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_rename),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_unlink),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_poll),
];

/// A place that can be written, found out when it was opened.
#[derive(Debug)]
pub struct StatisticsFile {
    path: PathBuf,
    /// A FIFO, a device, or a stream that the process has from its parent, once it is open. It stays
    /// open, so that its reader sees no end before the last text.
    stream: Option<File>,
}

/// What is at a path, opened for writing.
enum Found {
    /// Nothing, or a link to nothing.
    Nothing,
    /// A regular file, and its metadata.
    Regular(File, Metadata),
    /// Everything else that can be written.
    Stream(File),
    /// A FIFO that no process has open for reading (fifo(7)).
    UnreadFifo,
}

impl StatisticsFile {
    /// Checks that `path` can be written, and opens it if it is no regular file. Leaves the content
    /// of a file as it is.
    ///
    /// # Errors
    ///
    /// Where a later [`StatisticsFile::write`] could not succeed.
    pub fn open(path: &Path) -> io::Result<StatisticsFile> {
        let stream = match find(path)? {
            Found::Stream(stream) => Some(stream),
            Found::Regular(..) | Found::UnreadFifo => None,
            Found::Nothing if path.is_symlink() => {
                create_in_place(path)?;
                None
            }
            Found::Nothing => {
                new_file_beside(path)?;
                None
            }
        };
        Ok(StatisticsFile { path: path.to_owned(), stream })
    }

    /// What a thread needs that only calls [`StatisticsFile::write`] from now on. What takes the place of the file
    /// later is written if it is in the same directory, and a link is followed if it leads to where it does now.
    pub fn needs(&self) -> Needs {
        let needs = Needs::default().calling(CALLS);
        let is_stream = |found: &Metadata| matches!(standard_stream(found), Ok(Some(_)));
        match fs::metadata(&self.path) {
            // It is open.
            Ok(found) if is_stream(&found) => needs,
            Ok(found) if !found.is_file() && !found.file_type().is_fifo() => {
                needs.writing(&self.path)
            }
            // Or nothing is there yet.
            Ok(_) | Err(_) => match fs::canonicalize(&self.path) {
                Ok(target) => needs.managing(directory_of(&target)),
                Err(_) => needs,
            }
            .managing(directory_of(&self.path)),
        }
    }

    /// Writes `text`: as all that a file contains, or as the next of a stream. What is at the path may
    /// have changed since the last time.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or nobody reads the stream.
    pub fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if let Some(stream) = &mut self.stream {
            match write_stream(stream, text) {
                // The reader has ended; there may be another.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.stream = None,
                outcome => return outcome,
            }
        }
        match find(&self.path)? {
            Found::Stream(stream) => write_stream(self.stream.insert(stream), text),
            Found::UnreadFifo => Err(io::Error::other("no process reads it")),
            Found::Regular(old, metadata) => overwrite(&self.path, old, &metadata, text),
            Found::Nothing if self.path.is_symlink() => {
                create_in_place(&self.path)?.write_all(text)
            }
            Found::Nothing => {
                let mut new = new_file_beside(&self.path)?;
                new.as_file_mut().write_all(text)?;
                new.persist(&self.path)?;
                Ok(())
            }
        }
    }
}

/// Opens what is at `path`, without waiting for a reader.
fn find(path: &Path) -> io::Result<Found> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    if let Some(stream) = standard_stream(&found)? {
        return Ok(Found::Stream(stream));
    }
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = OpenOptions::new().write(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = match opened {
        Err(error)
            if found.file_type().is_fifo() && Errno::from_io_error(&error) == Some(Errno::NXIO) =>
        {
            return Ok(Found::UnreadFifo);
        }
        opened => opened?,
    };
    // Of what was opened: something else may have taken the place meanwhile.
    let metadata = file.metadata()?;
    Ok(if metadata.is_file() { Found::Regular(file, metadata) } else { Found::Stream(file) })
}

/// Creates the file that a dangling link names.
fn create_in_place(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(path)
}

/// Standard output or standard error, if that is what was found: `/dev/stdout` may be a socket, which
/// cannot be opened, or a file whose content must not be lost.
fn standard_stream(found: &Metadata) -> io::Result<Option<File>> {
    for stream in [io::stdout().as_fd(), io::stderr().as_fd()] {
        // One that is closed is no stream.
        if let Ok(status) = rustix::fs::fstat(stream)
            && (status.st_dev, status.st_ino) == (found.dev(), found.ino())
        {
            return Ok(Some(stream.try_clone_to_owned()?.into()));
        }
    }
    Ok(None)
}

/// Replaces the regular file `old` in one step where nothing is lost by that, or else its content.
fn overwrite(path: &Path, mut old: File, found: &Metadata, text: &[u8]) -> io::Result<()> {
    if let Some((target, mut new)) = replacement(path, found) {
        new.as_file_mut().write_all(text)?;
        if new.persist(target).is_ok() {
            return Ok(());
        }
    }
    old.set_len(0)?;
    old.write_all(text)
}

/// A new file with the mode and owner of the one at `path`, and the path that it can take over;
/// nothing where replacing would lose something.
fn replacement(path: &Path, found: &Metadata) -> Option<(PathBuf, NamedTempFile)> {
    let has_other_names = found.nlink() > 1;
    let has_access_list =
        rustix::fs::getxattr(path, "system.posix_acl_access", &mut [0; 0]).is_ok();
    if has_other_names || has_access_list {
        return None;
    }
    let target = fs::canonicalize(path).ok()?;
    let is_found = |other: Metadata| (other.dev(), other.ino()) == (found.dev(), found.ino());
    if !fs::symlink_metadata(&target).is_ok_and(is_found) {
        return None;
    }
    let new = new_file_beside(&target).ok()?;
    let made = new.as_file().metadata().ok()?;
    if (made.uid(), made.gid()) != (found.uid(), found.gid()) {
        fchown(new.as_file(), Some(found.uid()), Some(found.gid())).ok()?;
    }
    // After changing the owner, which may take bits of the mode away (chown(2)).
    new.as_file().set_permissions(found.permissions()).ok()?;
    Some((target, new))
}

/// A new file in the directory of `path`, which is removed unless it is made permanent.
fn new_file_beside(path: &Path) -> io::Result<NamedTempFile> {
    let name = path.file_name().ok_or(Errno::NOENT)?;
    // The name of a directory may end with `/` or `/.`, the name of a file does not.
    if !path.as_os_str().as_bytes().ends_with(name.as_bytes()) {
        return Err(Errno::ISDIR.into());
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(NEW_FILE_MODE);
    Builder::new().prefix(".ringecho-").make_in(directory_of(path), |path| options.open(path))
}

fn directory_of(path: &Path) -> &Path {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    directory.unwrap_or(Path::new("."))
}

/// Writes to a pipe, terminal or device, whether or not its descriptor waits by itself.
fn write_stream(file: &mut File, mut text: &[u8]) -> io::Result<()> {
    let end = Instant::now() + STREAM_WAIT_MAX;
    while !text.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).expect("at most a second");
        let mut ready = [PollFd::new(file, PollFlags::OUT)];
        match poll(&mut ready, Some(&timeout)) {
            Ok(0) => return Err(io::Error::other("its reader does not read")),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match file.write(&text[..text.len().min(PIPE_BYTES)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::io::Read as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::thread;

    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tempfile::TempDir;

    use super::*;

    fn directory() -> TempDir {
        tempfile::tempdir().expect("a directory")
    }

    #[track_caller]
    fn write(path: &Path, text: &str) {
        let mut file = StatisticsFile::open(path).expect("a place that can be written");
        file.write(text.as_bytes()).expect("it is written");
    }

    /// The names in a directory, in order.
    fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory.path()).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
        let mut names: Vec<String> = names.map(|name| name.expect("UTF-8")).collect();
        names.sort();
        names
    }

    fn fifo(path: &Path) {
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
    }

    #[test]
    fn a_new_file_appears_whole_and_nothing_else_is_left() {
        let directory = directory();
        let path = directory.path().join("new");
        let mut file = StatisticsFile::open(&path).expect("a directory that can be written");
        assert_eq!(names(&directory), Vec::<String>::new());
        for text in ["first", "2"] {
            file.write(text.as_bytes()).expect("it is written");
            assert_eq!(fs::read_to_string(&path).expect("a file"), text);
        }
        assert_eq!(names(&directory), ["new"]);
        fs::remove_file(&path).expect("a file");
        file.write(b"again").expect("it is made again");
        assert_eq!(fs::read_to_string(&path).expect("a file"), "again");
    }

    #[test]
    fn a_file_keeps_its_mode_and_owner_and_its_reader_the_old_text() {
        let directory = directory();
        let path = directory.path().join("private");
        fs::write(&path, "the old text, which is longer").expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("a mode");
        // Only root may give a file away.
        let _ = std::os::unix::fs::chown(&path, Some(65_534), Some(65_534));
        let before = fs::metadata(&path).expect("a file");
        let mut reader = File::open(&path).expect("a file");
        write(&path, "new");
        let after = fs::metadata(&path).expect("a file");
        assert_eq!((before.mode(), before.uid()), (after.mode(), after.uid()));
        assert_eq!(before.gid(), after.gid());
        assert_eq!(fs::read_to_string(&path).expect("a file"), "new");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("a file");
        assert_eq!(text, "the old text, which is longer");
        assert_eq!(names(&directory), ["private"]);
    }

    #[test]
    fn links_stay_and_lead_to_the_text() {
        let directory = directory();
        let place = |name: &str| directory.path().join(name);
        fs::write(place("file"), "old").expect("a file");
        fs::hard_link(place("file"), place("hard")).expect("a link");
        symlink("hard", place("soft")).expect("a link");
        symlink("nowhere", place("dangling")).expect("a link");
        write(&place("soft"), "through");
        for name in ["file", "hard", "soft"] {
            assert_eq!(fs::read_to_string(place(name)).expect("a file"), "through", "{name}");
        }
        write(&place("dangling"), "made");
        assert_eq!(fs::read_to_string(place("nowhere")).expect("a file"), "made");
        assert!(place("soft").is_symlink() && place("dangling").is_symlink());
        assert_eq!(names(&directory), ["dangling", "file", "hard", "nowhere", "soft"]);
    }

    #[test]
    fn a_device_is_written_through() {
        write(Path::new("/dev/null"), "gone");
        let mut full = StatisticsFile::open(Path::new("/dev/full")).expect("a device");
        let error = full.write(b"too much").expect_err("a full device");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let found = fs::metadata("/dev/full").expect("a device");
        assert!(found.file_type().is_char_device());
    }

    #[test]
    fn what_takes_the_place_of_a_file_is_written_as_what_it_is() {
        let directory = directory();
        let path = directory.path().join("file");
        let mut file = StatisticsFile::open(&path).expect("a place that can be written");
        file.write(b"a file").expect("it is written");
        fs::remove_file(&path).expect("a file");
        // A device of this test alone, where the system allows one to be made.
        let device = directory.path().join("full");
        let number = rustix::fs::makedev(1, 7);
        let mode = Mode::RUSR | Mode::WUSR;
        if mknodat(CWD, &device, FileType::CharacterDevice, mode, number).is_ok() {
            symlink(&device, &path).expect("a link");
            if let Err(error) = file.write(b"too much") {
                // `nodev` forbids to open it.
                let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::PermissionDenied];
                assert!(kinds.contains(&error.kind()), "{error}");
            } else {
                panic!("the device was replaced, or is not full");
            }
            let found = fs::metadata(&device).expect("a device");
            assert!(found.file_type().is_char_device());
            fs::remove_file(&path).expect("a link");
            fs::remove_file(&device).expect("a device");
            file = StatisticsFile::open(&path).expect("a place that can be written");
        }
        fifo(&path);
        let error = file.write(b"lost").expect_err("nobody reads");
        assert!(error.to_string().contains("no process reads it"), "{error}");
        fs::remove_file(&path).expect("a FIFO");
        fs::create_dir(&path).expect("a directory");
        file.write(b"lost").expect_err("a directory");
        fs::remove_dir(&path).expect("a directory");
        file.write(b"a file").expect("it is written");
        assert_eq!(names(&directory), ["file"]);
    }

    #[test]
    fn an_error_is_about_the_path_that_was_given() {
        let directory = directory();
        let error =
            StatisticsFile::open(&directory.path().join("no/file")).expect_err("no directory");
        assert_eq!(Errno::from_io_error(&error), Some(Errno::NOENT));
        assert!(!error.to_string().contains(".ringecho"), "{error}");
    }

    #[test]
    fn a_fifo_brings_its_reader_every_text_and_then_the_end() {
        let directory = directory();
        let path = directory.path().join("fifo");
        fifo(&path);
        let place = path.clone();
        let reader = thread::spawn(move || fs::read_to_string(place).expect("a FIFO"));
        let long = "x".repeat(300_000);
        // A FIFO can be opened for writing without waiting once its reader is there.
        let mut file = loop {
            let file = StatisticsFile::open(&path).expect("a FIFO");
            match file.stream {
                Some(_) => break file,
                None => thread::yield_now(),
            }
        };
        file.write(long.as_bytes()).expect("it is read");
        file.write(b"end").expect("it is read");
        drop(file);
        assert!(reader.join().expect("a reader") == long + "end");
        assert_eq!(names(&directory), ["fifo"]);
    }

    #[test]
    fn a_fifo_that_nobody_reads_holds_nothing_up() {
        let directory = directory();
        let path = directory.path().join("fifo");
        fifo(&path);
        let mut file = StatisticsFile::open(&path).expect("a reader may still come");
        let error = file.write(b"lost").expect_err("nobody reads");
        assert!(error.to_string().contains("no process reads it"), "{error}");
        // A reader that does not read.
        let _reader = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&path)
            .expect("a FIFO");
        file.write(b"kept by the pipe").expect("there is room");
        let error = file.write(&vec![b'x'; 1 << 20]).expect_err("more than a pipe takes");
        assert!(error.to_string().contains("does not read"), "{error}");
    }

    #[test]
    fn what_cannot_be_written_is_found_when_it_is_opened() {
        let directory = directory();
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let into_nowhere = directory.path().join("link");
        symlink("no/directory", &into_nowhere).expect("a link");
        for path in [
            directory.path().to_owned(),
            directory.path().join("no-directory/file"),
            directory.path().join("socket/file"),
            directory.path().join("new/.."),
            directory.path().join("new/"),
            directory.path().join("new/."),
            PathBuf::new(),
            socket,
            into_nowhere,
        ] {
            assert!(StatisticsFile::open(&path).is_err(), "{}", path.display());
        }
    }
}
