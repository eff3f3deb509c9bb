//! Another order of directory entries for a sandbox: init lists directories for the build, the
//! other way round.
//!
//! Nothing promises an order, the kernel has no switch for it, and builds depend on it all the
//! same. So the system calls that list a directory become notifications to init (`answers`). It
//! takes the caller's open directory, reads all of it, and hands it out from its end; `.` and `..`
//! stay where they are, because every file system has them first. The reverse differs from the
//! usual order in every pair of names, so also for what only looks at the first one. In memory,
//! where kernels list sometimes the newest and sometimes the oldest first, it is always the newest:
//! the reverse could be just what a disk has that lists in the order of making.
//!
//! How far a listing has got is kept where the kernel keeps it, in the position of the open
//! directory: a number says how many entries are left. So processes that share it share that, too,
//! rewinding and seeking work, and nothing has to be noticed when a directory is closed midway.
//! The entries themselves are kept for the next call, but never many of them. Those that were
//! dropped are read again: what is left is then what the file system lists first, which holds
//! however much of what was handed out has been removed meanwhile. Only files that are made or
//! removed ahead of that may then be missed or come twice.
//!
//! Whatever can't be taken, isn't a directory, or doesn't bear such positions, is left to the
//! kernel, which answers it as it always does.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::fstat;
use nix::unistd::{Pid, Whence, lseek64};
use rustix::fs::{FileType, RawDir};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::bpf::{Program, Test};

const LIST: u32 = libc::SYS_getdents64 as u32;
/// The same as it was before there were types of entries.
#[cfg(target_arch = "x86_64")]
const LIST_UNTYPED: Option<u32> = Some(libc::SYS_getdents as u32);
#[cfg(not(target_arch = "x86_64"))]
const LIST_UNTYPED: Option<u32> = None;

/// So many listings that aren't at their end are kept …
const MOST_LISTINGS: usize = 256;
/// … with so many entries together, but for the last one alone.
const MOST_ENTRIES: usize = 1 << 20;
/// What is read from the kernel at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Init's part: the listings that are not at their end.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// File systems whose directories are listed as usual.
    left_alone: Vec<libc::dev_t>,
    /// File systems in memory, whose inodes are numbered as they are made.
    in_memory: Vec<libc::dev_t>,
    /// Those used last at the end.
    listings: VecDeque<Listing>,
    last_number: u16,
}

/// A directory's entries in the order in which they are handed out.
#[derive(Debug)]
struct Listing {
    number: u16,
    directory: (libc::dev_t, libc::ino_t),
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    inode: u64,
    /// As `d_type` has it.
    kind: u8,
    name: Box<[u8]>,
}

/// What one call gets, and where it found and left the directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) bytes: Vec<u8>,
    from: i64,
}

/// Sends the calls of these that list directories to init; the number is loaded.
pub(super) fn questions(program: &mut Program) {
    for call in [Some(LIST), LIST_UNTYPED].into_iter().flatten() {
        program.when(Test::Equal(call), |p| p.answer(libc::SECCOMP_RET_USER_NOTIF));
    }
}

/// Whether this is a call of this module's.
pub(super) fn is_listing(call: u32) -> bool {
    call == LIST || Some(call) == LIST_UNTYPED
}

/// A process's descriptor, with the position that it shares; `None` if it can't be had. That the
/// process still waits is to be looked at afterwards.
pub(super) fn descriptor_of(pid: Pid, number: i32) -> Option<OwnedFd> {
    // Any thread can call; before Linux 6.9 only a process's first one has a descriptor.
    const OF_A_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);
    if number < 0 {
        // The library takes no number that can't be a descriptor's; the kernel says EBADF.
        return None;
    }
    let thread = rustix::process::Pid::from_raw(pid.as_raw())?;
    match pidfd_open(thread, OF_A_THREAD).or_else(|_| pidfd_open(thread, PidfdFlags::empty())) {
        Ok(process) => pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok(),
        Err(_) => descriptor_of_first_thread(pid, number),
    }
}

/// As `descriptor_of`, taken from the process's first thread.
fn descriptor_of_first_thread(pid: Pid, number: i32) -> Option<OwnedFd> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let first = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
    let process = pidfd_open(rustix::process::Pid::from_raw(first)?, PidfdFlags::empty()).ok()?;
    let taken = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
    // Threads may have descriptors of their own: then this one is something else.
    let theirs = nix::sys::stat::stat(format!("/proc/{pid}/fd/{number}").as_str()).ok()?;
    let ours = fstat(&taken).ok()?;
    ((ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)).then_some(taken)
}

impl Order {
    /// `as_usual`: directories on whose file systems the usual order is left; `in_memory`: those of
    /// which the newest comes first.
    pub(super) fn new(as_usual: &[&str], in_memory: &[String]) -> Result<Order, Errno> {
        let device = |path: &str| nix::sys::stat::stat(path).map(|found| found.st_dev);
        let left_alone = as_usual.iter().map(|path| device(path)).collect::<Result<_, _>>()?;
        let in_memory = in_memory.iter().map(|path| device(path)).collect::<Result<_, _>>()?;
        Ok(Order { left_alone, in_memory, ..Order::default() })
    }

    /// Answers one call for an open directory, and moves its position as the kernel would: at most
    /// `room` bytes of entries. `None`: it is the kernel's to answer.
    pub(super) fn turn(
        &mut self,
        directory: BorrowedFd<'_>,
        call: u32,
        room: usize,
    ) -> Result<Option<Turn>, Errno> {
        let Ok(found) = fstat(directory) else { return Ok(None) };
        // One that was removed while it was open has an error of its own.
        let is_listed = found.st_mode & libc::S_IFMT == libc::S_IFDIR && found.st_nlink > 0;
        if !is_listed || self.left_alone.contains(&found.st_dev) {
            return Ok(None);
        }
        // What was opened as a mere place has no position.
        let Ok(from) = lseek64(directory, 0, Whence::SeekCur) else { return Ok(None) };
        let position = Position::of(from);
        match position {
            None if from != 0 => return Ok(None),
            Some(Position { left: 0, .. }) => return Ok(Some(Turn { bytes: Vec::new(), from })),
            _ => {}
        }
        let identity = (found.st_dev, found.st_ino);
        let kept = position.and_then(|it| self.take(it.listing, identity));
        let listing = match kept.map_or_else(|| self.read(directory, identity), Ok) {
            Ok(listing) => listing,
            Err(errno) => return give_back(directory, from, errno),
        };
        let all = listing.entries.len();
        let left = position.map_or(all, |it| all.min(it.left as usize));
        let (bytes, count) = listing.encode(left, Some(call) == LIST_UNTYPED, room);
        let stays = count == 0 && left > 0;
        let after = Position { listing: listing.number, left: (left - count) as u32 };
        let to = if stays { from } else { after.number() };
        if lseek64(directory, to, Whence::SeekSet) != Ok(to) {
            return give_back(directory, from, Errno::EINVAL);
        }
        if count < left && to != 0 {
            self.keep(listing);
        }
        if stays { Err(Errno::EINVAL) } else { Ok(Some(Turn { bytes, from })) }
    }

    /// Reads a directory from its beginning, and leaves it at its end.
    fn read(
        &mut self,
        directory: BorrowedFd<'_>,
        identity: (libc::dev_t, libc::ino_t),
    ) -> Result<Listing, Errno> {
        lseek64(directory, 0, Whence::SeekSet)?;
        let mut entries = Vec::new();
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let mut directory = RawDir::new(directory, buffer.spare_capacity_mut());
        while let Some(entry) = directory.next() {
            let entry = entry.map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
            if entries.len() == Position::MOST_LEFT as usize {
                return Err(Errno::E2BIG); // than positions can say
            }
            entries.push(Entry {
                inode: entry.ino(),
                kind: match entry.file_type() {
                    FileType::Unknown => libc::DT_UNKNOWN,
                    known => (known.as_raw_mode() >> 12) as u8,
                },
                name: entry.file_name().to_bytes().into(),
            });
        }
        match self.in_memory.contains(&identity.0) {
            true => entries.sort_by_key(|entry| Reverse(entry.inode)),
            false => entries.reverse(),
        }
        // Stable: what is first comes first, the others keep their order.
        entries.sort_by_key(|entry| match &*entry.name {
            b"." => 0,
            b".." => 1,
            _ => 2,
        });
        self.last_number = self.last_number.checked_add(1).unwrap_or(1);
        Ok(Listing { number: self.last_number, directory: identity, entries })
    }

    /// Takes a listing out of those that are kept.
    fn take(&mut self, number: u16, directory: (libc::dev_t, libc::ino_t)) -> Option<Listing> {
        let is_it = |it: &Listing| it.number == number && it.directory == directory;
        let at = self.listings.iter().position(is_it)?;
        self.listings.remove(at)
    }

    /// Keeps a listing as the one used last, and drops what is too much.
    fn keep(&mut self, listing: Listing) {
        self.listings.push_back(listing);
        let mut entries: usize = self.listings.iter().map(|it| it.entries.len()).sum();
        while self.listings.len() > 1
            && (self.listings.len() > MOST_LISTINGS || entries > MOST_ENTRIES)
        {
            let dropped = self.listings.pop_front();
            entries -= dropped.map_or(0, |it| it.entries.len());
        }
    }
}

/// After something failed: a listing that was not begun is the kernel's, of another one it is told.
fn give_back(directory: BorrowedFd<'_>, from: i64, errno: Errno) -> Result<Option<Turn>, Errno> {
    lseek64(directory, from, Whence::SeekSet)?;
    if from == 0 { Ok(None) } else { Err(errno) }
}

impl Turn {
    /// Makes it as if there had been none: what was handed out didn't arrive.
    pub(super) fn undo(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        lseek64(directory, self.from, Whence::SeekSet).map(drop)
    }

    /// Whether it is the first of a listing, which the kernel could make as well.
    pub(super) fn is_first(&self) -> bool {
        self.from == 0
    }
}

impl Listing {
    /// The next of the last `left` entries as the kernel would write them, as many as there is room
    /// for; and how many that is.
    fn encode(&self, left: usize, untyped: bool, room: usize) -> (Vec<u8>, usize) {
        let mut bytes = Vec::new();
        let mut count = 0;
        for entry in &self.entries[self.entries.len() - left..] {
            let after = Position { listing: self.number, left: (left - count - 1) as u32 };
            // Inode, position, length; the type before the name, or else after it and its end.
            let length = 8 + 8 + 2 + 1 + entry.name.len() + 1;
            let length = length.next_multiple_of(8);
            if bytes.len() + length > room {
                break;
            }
            let end = bytes.len() + length;
            bytes.extend(entry.inode.to_ne_bytes());
            bytes.extend(after.number().to_ne_bytes());
            bytes.extend((length as u16).to_ne_bytes());
            if !untyped {
                bytes.push(entry.kind);
            }
            bytes.extend(&*entry.name);
            bytes.resize(end, 0);
            if untyped {
                bytes[end - 1] = entry.kind;
            }
            count += 1;
        }
        (bytes, count)
    }
}

/// How far a listing is, in the number that the kernel keeps for an open directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    listing: u16,
    left: u32,
}

impl Position {
    /// Tells these numbers from a file system's own, and is no more than any file system on a disk
    /// takes as the length of a file.
    const MARK: i64 = 1 << 40;
    const MOST_LEFT: u32 = (1 << 24) - 1;

    fn number(self) -> i64 {
        Self::MARK | i64::from(self.listing) << 24 | i64::from(self.left)
    }

    fn of(number: i64) -> Option<Position> {
        let is_ours = number & !(Self::MARK - 1) == Self::MARK;
        let (listing, left) = ((number >> 24) as u16, number as u32 & Self::MOST_LEFT);
        is_ours.then_some(Position { listing, left })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;

    fn directory_of(count: usize) -> (TempDir, Vec<String>) {
        let directory = tempfile::tempdir().expect("made");
        let names: Vec<String> = (0..count).map(|number| format!("file {number}")).collect();
        for name in &names {
            fs::write(directory.path().join(name), "").expect("written");
        }
        (directory, names)
    }

    fn open(path: &Path) -> File {
        File::open(path).expect("opened")
    }

    fn usual(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).expect("listed").map(|it| it.expect("read").file_name());
        entries.map(|name| name.into_string().expect("text")).collect()
    }

    /// Names and the positions after them.
    fn decode(bytes: &[u8], untyped: bool) -> Vec<(String, i64)> {
        let mut found = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let position = i64::from_ne_bytes(rest[8..16].try_into().expect("eight"));
            let length = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let name = &rest[if untyped { 18 } else { 19 }..length];
            let end = name.iter().position(|byte| *byte == 0).expect("an end");
            found.push((String::from_utf8(name[..end].to_vec()).expect("text"), position));
            rest = &rest[length..];
        }
        found
    }

    fn next(order: &mut Order, directory: &File, room: usize) -> Vec<String> {
        let turn = order.turn(directory.as_fd(), LIST, room).expect("answered").expect("listed");
        decode(&turn.bytes, false).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_directory_is_listed_from_its_end() {
        let (place, _) = directory_of(40);
        let mut order = Order::default();
        let directory = open(place.path());
        let mut expected = usual(place.path());
        expected.reverse();
        assert_eq!(
            next(&mut order, &directory, 1 << 15),
            [vec![".".into(), "..".into()], expected].concat()
        );
        assert_eq!(next(&mut order, &directory, 1 << 15), Vec::<String>::new());
        assert_eq!(next(&mut order, &directory, 1), Vec::<String>::new());
        assert!(order.listings.is_empty(), "it is at its end");
        if let Some(untyped) = LIST_UNTYPED {
            let directory = open(place.path());
            let turn = order.turn(directory.as_fd(), untyped, 1 << 15);
            let bytes = turn.expect("answered").expect("listed").bytes;
            assert_eq!(decode(&bytes, true).len(), 42);
            let length = usize::from(u16::from_ne_bytes([bytes[16], bytes[17]]));
            assert_eq!(bytes[length - 1], libc::DT_DIR);
        }
    }

    #[test]
    fn in_memory_the_newest_comes_first() {
        use std::os::unix::fs::MetadataExt;
        let (place, mut names) = directory_of(40);
        let path = place.path().to_str().expect("text").to_owned();
        let mut order = Order::new(&[], &[path]).expect("it is there");
        // On a disk, which the test has, numbers are not in the order of making.
        names.sort_by_key(|name| {
            Reverse(fs::metadata(place.path().join(name)).expect("it is there").ino())
        });
        let directory = open(place.path());
        assert_eq!(
            next(&mut order, &directory, 1 << 15),
            [vec![".".into(), "..".into()], names].concat()
        );
    }

    #[test]
    fn what_is_removed_between_the_calls_makes_nothing_be_missed() {
        for forgets in [false, true] {
            let (place, mut names) = directory_of(500);
            let (mut order, directory) = (Order::default(), open(place.path()));
            let mut found = Vec::new();
            loop {
                let part = next(&mut order, &directory, 200);
                if part.is_empty() {
                    break;
                }
                for name in part.iter().filter(|name| !name.starts_with('.')) {
                    fs::remove_file(place.path().join(name)).expect("it is there");
                }
                found.extend(part);
                if forgets {
                    order.listings.clear();
                }
            }
            assert_eq!(usual(place.path()), Vec::<String>::new());
            names.extend([".".into(), "..".into()]);
            names.sort();
            found.sort();
            assert_eq!(found, names);
        }
    }

    #[test]
    fn positions_are_shared_sought_and_rewound() {
        let (place, _) = directory_of(50);
        let (mut order, directory) = (Order::default(), open(place.path()));
        let shared = directory.try_clone().expect("duplicated");
        let other = open(place.path());
        let whole = next(&mut order, &other, 1 << 15);
        let turn = order.turn(directory.as_fd(), LIST, 256).expect("answered").expect("listed");
        let first = decode(&turn.bytes, false);
        let rest = next(&mut order, &shared, 1 << 15);
        assert_eq!(first.len() + rest.len(), whole.len());
        assert_eq!(rest, whole[first.len()..]);
        // To behind the second: also where the listing is no longer kept.
        lseek64(&directory, first[1].1, Whence::SeekSet).expect("sought");
        assert_eq!(next(&mut order, &directory, 1 << 15), whole[2..]);
        lseek64(&directory, 0, Whence::SeekSet).expect("rewound");
        assert_eq!(next(&mut order, &directory, 1 << 15), whole);
        // What didn't arrive comes again.
        lseek64(&directory, 0, Whence::SeekSet).expect("rewound");
        let turn = order.turn(directory.as_fd(), LIST, 256).expect("answered").expect("listed");
        assert!(turn.is_first());
        turn.undo(directory.as_fd()).expect("undone");
        assert_eq!(next(&mut order, &directory, 1 << 15), whole);
    }

    #[test]
    fn too_little_room_changes_nothing() {
        let (place, names) = directory_of(3);
        let (mut order, directory) = (Order::default(), open(place.path()));
        for room in [0, 23] {
            assert_eq!(order.turn(directory.as_fd(), LIST, room), Err(Errno::EINVAL));
        }
        assert_eq!(next(&mut order, &directory, 24), ["."]);
        assert_eq!(next(&mut order, &directory, 24), [".."]);
        assert_eq!(order.turn(directory.as_fd(), LIST, 24), Err(Errno::EINVAL));
        assert_eq!(next(&mut order, &directory, 1 << 15).len(), names.len());
    }

    #[test]
    fn what_is_not_to_be_reversed_is_left_to_the_kernel() {
        let (place, _) = directory_of(3);
        let mut order = Order::default();
        let file = open(&place.path().join("file 0"));
        assert_eq!(order.turn(file.as_fd(), LIST, 1 << 15), Ok(None));
        let flags = nix::fcntl::OFlag::O_PATH;
        let mere_place = nix::fcntl::open(place.path(), flags, nix::sys::stat::Mode::empty());
        let mere_place = mere_place.expect("opened");
        assert_eq!(order.turn(mere_place.as_fd(), LIST, 1 << 15), Ok(None));
        // A position of the file system's own, from before.
        let directory = open(place.path());
        lseek64(&directory, 2, Whence::SeekSet).expect("sought");
        assert_eq!(order.turn(directory.as_fd(), LIST, 1 << 15), Ok(None));
        fs::create_dir(place.path().join("gone")).expect("made");
        let gone = open(&place.path().join("gone"));
        fs::remove_dir(place.path().join("gone")).expect("removed");
        assert_eq!(order.turn(gone.as_fd(), LIST, 1 << 15), Ok(None));
        let path = place.path().to_str().expect("text");
        let mut order = Order::new(&[path], &[]).expect("it is there");
        let directory = open(place.path());
        assert_eq!(order.turn(directory.as_fd(), LIST, 1 << 15), Ok(None));
        assert_eq!(lseek64(&directory, 0, Whence::SeekCur), Ok(0));
    }

    #[test]
    fn listings_that_nobody_ends_are_dropped() {
        let (place, _) = directory_of(3);
        let mut order = Order::default();
        let mut last = None;
        for _ in 0..3 * MOST_LISTINGS {
            let directory = open(place.path());
            assert_eq!(next(&mut order, &directory, 24), ["."]);
            last = Some(directory);
        }
        assert_eq!(order.listings.len(), MOST_LISTINGS);
        let last = last.expect("there were some");
        assert_eq!(next(&mut order, &last, 1 << 15).len(), 4);
        assert_eq!(order.listings.len(), MOST_LISTINGS - 1);
    }

    #[test]
    fn descriptors_of_threads_are_taken_with_their_position() {
        use std::os::fd::AsRawFd;
        let (place, _) = directory_of(3);
        let directory = open(place.path());
        let number = directory.as_raw_fd();
        let (send, receive) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send.send(nix::unistd::gettid()).expect("sent");
            let _ = ended.recv();
        });
        let thread_id = receive.recv().expect("received");
        for take in [descriptor_of, descriptor_of_first_thread] {
            let taken = take(thread_id, number).expect("a process may take its own");
            lseek64(&taken, 0, Whence::SeekSet).expect("sought");
            assert!(!next(&mut Order::default(), &File::from(taken), 1 << 15).is_empty());
            let position = lseek64(&directory, 0, Whence::SeekCur).expect("told");
            assert_eq!(Position::of(position).map(|it| it.left), Some(0));
            assert!(take(thread_id, 1 << 20).is_none());
        }
        drop(end);
        thread.join().expect("it ends");
    }

    #[test]
    fn positions_survive_the_way_through_the_kernel() {
        for position in [
            Position { listing: 0, left: 0 },
            Position { listing: 1, left: 7 },
            Position { listing: u16::MAX, left: Position::MOST_LEFT },
        ] {
            assert_eq!(Position::of(position.number()), Some(position));
        }
        for number in [0, 1, i64::MAX, -1, 1 << 41, (1 << 40) - 1] {
            assert_eq!(Position::of(number), None, "{number}");
        }
    }
}
