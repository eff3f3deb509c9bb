//! A cache in memory, for tests: it counts what is asked of it, and misbehaves as told.

use std::collections::BTreeMap;
use std::io::{Cursor, Error, ErrorKind, Read};
use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use crate::cache::{Body, CacheError, CachePath, Content, Remote, Stat};

#[derive(Default)]
pub(super) struct Memory {
    state: Mutex<State>,
}

type OnPut = Box<dyn FnMut(&CachePath) -> Vec<CachePath> + Send>;

#[derive(Default)]
struct State {
    files: BTreeMap<CachePath, (Vec<u8>, SystemTime)>,
    /// Paths in the order in which they were put.
    put: Vec<CachePath>,
    gets: usize,
    sent: u64,
    misbehaviour: Misbehaviour,
    on_put: Option<OnPut>,
}

/// What is wrong with each body.
#[derive(Clone, Copy, Default)]
pub(super) enum Misbehaviour {
    #[default]
    None,
    /// It says its length, and ends after so many bytes.
    EndsAfter(u64),
    /// The transfer fails after so many bytes.
    BreaksAfter(u64),
    /// It never ends.
    Endless,
    /// It comes in single bytes.
    Trickles,
    /// Those of more than 64 KiB come in single bytes, a hundred in a second.
    Crawls,
    /// It ends after so many bytes, as does the cache: nothing is answered any more.
    DiesAfter(u64),
    /// Nothing is answered.
    Dead,
}

impl Memory {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    pub(super) fn forget_requests(&self) {
        let mut state = self.state();
        (state.gets, state.sent) = (0, 0);
        state.put.clear();
    }

    pub(super) fn gets(&self) -> usize {
        self.state().gets
    }

    pub(super) fn puts(&self) -> usize {
        self.state().put.len()
    }

    /// Bytes of bodies that were read.
    pub(super) fn sent(&self) -> u64 {
        self.state().sent
    }

    pub(super) fn misbehave(&self, misbehaviour: Misbehaviour) {
        self.state().misbehaviour = misbehaviour;
    }

    /// Calls `on_put` before each file that is put; what it returns is deleted.
    pub(super) fn on_put(&self, on_put: impl FnMut(&CachePath) -> Vec<CachePath> + Send + 'static) {
        self.state().on_put = Some(Box::new(on_put));
    }

    pub(super) fn files(&self) -> Vec<(CachePath, Vec<u8>)> {
        self.state().files.iter().map(|(path, (bytes, _))| (path.clone(), bytes.clone())).collect()
    }

    pub(super) fn set(&self, path: &CachePath, bytes: Vec<u8>) {
        self.state().files.insert(path.clone(), (bytes, SystemTime::now()));
    }

    /// Makes everything look older.
    pub(super) fn age(&self, by: Duration) {
        for (_, time) in self.state().files.values_mut() {
            *time -= by;
        }
    }

    /// Each kind of file was put before the kinds that name it.
    pub(super) fn assert_content_first(&self) {
        let kinds =
            ["srp-cache", "packs", "deltas", "objects", "realisations", "closures", "roots"];
        let rank = |path: &CachePath| {
            let kind = path.as_str().split('/').next().expect("a part");
            kinds.iter().position(|known| *known == kind).expect("a known kind")
        };
        assert!(self.state().put.is_sorted_by_key(rank), "{:?}", self.state().put);
    }
}

impl Remote for Memory {
    fn url(&self) -> &str {
        "memory:"
    }

    fn get(&self, path: &CachePath, range: Option<Range<u64>>) -> Result<Option<Body>, CacheError> {
        let failed = |kind: ErrorKind| CacheError::Transport {
            action: "read",
            url: self.url().to_owned(),
            path: path.to_string(),
            source: kind.into(),
        };
        let mut state = self.state();
        state.gets += 1;
        if let Misbehaviour::Dead = state.misbehaviour {
            return Err(failed(ErrorKind::ConnectionRefused));
        }
        let Some((bytes, _)) = state.files.get(path) else { return Ok(None) };
        let range = range.unwrap_or(0..bytes.len() as u64);
        let Some(part) = bytes.get(range.start as usize..range.end as usize) else {
            return Err(failed(ErrorKind::UnexpectedEof));
        };
        let part = part.to_vec();
        let length = part.len() as u64;
        let reader: Box<dyn Read + Send> = match state.misbehaviour {
            Misbehaviour::None => Box::new(Cursor::new(part)),
            Misbehaviour::EndsAfter(count) => Box::new(Cursor::new(part).take(count)),
            Misbehaviour::BreaksAfter(count) => {
                Box::new(Cursor::new(part).take(count).chain(Broken))
            }
            Misbehaviour::Endless => Box::new(std::io::repeat(b'x')),
            Misbehaviour::Trickles => Box::new(Trickle(Cursor::new(part), Duration::ZERO)),
            Misbehaviour::Crawls if length > 64 << 10 => {
                Box::new(Trickle(Cursor::new(part), Duration::from_millis(10)))
            }
            Misbehaviour::DiesAfter(count) if length > count => {
                state.misbehaviour = Misbehaviour::Dead;
                Box::new(Cursor::new(part).take(count).chain(Broken))
            }
            Misbehaviour::Crawls | Misbehaviour::DiesAfter(_) => Box::new(Cursor::new(part)),
            Misbehaviour::Dead => unreachable!("it was refused"),
        };
        state.sent += length;
        Ok(Some(Body { length, reader }))
    }

    fn put(&self, path: &CachePath, content: Content<'_>) -> Result<(), CacheError> {
        let bytes = match content {
            Content::Bytes(bytes) => bytes.to_vec(),
            Content::File(file) | Content::Staged(file) => std::fs::read(file).expect("readable"),
        };
        let mut state = self.state();
        if let Some(mut on_put) = state.on_put.take() {
            for path in on_put(path) {
                state.files.remove(&path);
            }
            state.on_put = Some(on_put);
        }
        state.put.push(path.clone());
        state.files.insert(path.clone(), (bytes, SystemTime::now()));
        Ok(())
    }

    fn stat(&self, path: &CachePath) -> Result<Option<Stat>, CacheError> {
        let state = self.state();
        let stat = |(bytes, time): &(Vec<u8>, SystemTime)| Stat {
            size_bytes: bytes.len() as u64,
            modified: Some(*time),
        };
        Ok(state.files.get(path).map(stat))
    }

    fn refresh(&self, path: &CachePath) -> Result<bool, CacheError> {
        let mut state = self.state();
        let Some((_, time)) = state.files.get_mut(path) else { return Ok(false) };
        *time = SystemTime::now();
        Ok(true)
    }

    fn list(&self, directory: &str) -> Result<Vec<(CachePath, Stat)>, CacheError> {
        let state = self.state();
        let inside = |path: &&CachePath| {
            path.as_str().strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
        };
        let paths: Vec<CachePath> = state.files.keys().filter(inside).cloned().collect();
        drop(state);
        let stat = |path: CachePath| Some((path.clone(), self.stat(&path).ok()??));
        Ok(paths.into_iter().filter_map(stat).collect())
    }

    fn delete(&self, path: &CachePath) -> Result<(), CacheError> {
        self.state().files.remove(path);
        Ok(())
    }

    fn request_cost_bytes(&self) -> u64 {
        1000
    }
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(Error::from(ErrorKind::ConnectionReset))
    }
}

struct Trickle(Cursor<Vec<u8>>, Duration);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        std::thread::sleep(self.1);
        let end = buffer.len().min(1);
        self.0.read(&mut buffer[..end])
    }
}
