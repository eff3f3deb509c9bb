//! Importing: an export is read once, forward, and what has come whole is kept.
//!
//! Objects are fetched from it as from a cache, block by block against the digests in their
//! records; what the store has is passed without a look. Statements are kept for whoever asks (see
//! [`imported`](super::imported())), unless their signature is wrong. Nothing here believes anything.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use crate::cache::closure::ObjectRecord;
use crate::cache::export::{Contents, Exported};
use crate::cache::fetch::Fetcher;
use crate::cache::policy::{Asked, Evidence, Policy, Verdict};
use crate::cache::sealed::{SealError, Sealable, Sealed};
use crate::cache::statement::Statement;
use crate::cache::stream::{Header, Stream};
use crate::cache::{Cache, CacheError, CachePath, Holdings, MAX_INDEX_BYTES, Patience, imported};
use crate::digest::ObjectId;
use crate::error::StoreError;
use crate::object::ReferenceKind;
use crate::store::Store;

/// What is around the payload of a sealed file is small.
const SEAL_BYTES: u64 = 1024;

/// What it takes to import.
#[derive(Debug)]
pub struct Importer<'a> {
    /// Where objects are registered.
    pub store: &'a Store,
    /// Whose signatures can be checked, and who is no longer believed.
    pub policy: &'a Policy,
    /// Whether the export is trusted outright: statements that nobody signed are kept, and will be
    /// believed.
    pub trusted_outright: bool,
}

/// What came of importing.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What the export says of itself.
    pub contents: Contents,
    /// Objects that were registered.
    pub objects: u64,
    /// Objects that were here already.
    pub present: u64,
    /// Statements that were not here yet.
    pub statements: u64,
    /// Statements that nobody signed, and that were not kept.
    pub unsigned: u64,
    /// Statements by keys that are revoked, which were not kept.
    pub revoked: u64,
}

/// Why an import ended before the end. What had come whole stays.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It doesn't begin as exports do.
    #[error("{name} is no export that this srp knows: it does not begin with `srp export 1`")]
    NotAnExport {
        /// What it was read from.
        name: String,
    },
    /// It ends in the middle.
    #[error("{name} ends in the middle: {whole} of its {all} objects are here, and stay")]
    Truncated {
        /// What it was read from.
        name: String,
        /// How many of its objects the store has now.
        whole: u64,
        /// How many it should bring.
        all: u64,
    },
    /// It is not as exports are.
    #[error("{name} is damaged: {reason}")]
    Damaged {
        /// What it was read from.
        name: String,
        /// In what way.
        reason: String,
    },
    /// It can't be read.
    #[error("can't read {name}")]
    Read {
        /// What it was read from.
        name: String,
        /// What the system says.
        source: Error,
    },
    /// Something in it is wrong, or this machine failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> ImportError {
        ImportError::Cache(error.into())
    }
}

impl Importer<'_> {
    /// Reads an export from a file or a pipe. Messages call it `name`; `progress` is told of bytes as
    /// they are read, and of none before each read, when it may wait for them; its error ends it. What comes after the export's end is left alone.
    pub fn import(
        &self,
        from: File,
        name: &str,
        progress: Arc<dyn Fn(u64) -> std::io::Result<()> + Send + Sync>,
    ) -> Result<Report, ImportError> {
        let stream = Stream::new(from, name, progress);
        // A pipe waits for whoever writes to it: a large pack is made before its first byte comes.
        let patience = Patience { grace: Duration::MAX, bytes_per_second: 0 };
        let cache = Cache::open_with(Arc::new(stream.clone()), patience)?;
        let fetcher = Fetcher::new(self.store, &cache, Arc::<Holdings>::default());
        let mut reading =
            Reading { importer: self, stream, name, fetcher, report: Report::default() };
        let result = reading.all();
        // The statements' names are to survive, too, as far as they have come.
        let synced = self.store.committer.sync();
        match result {
            Ok(()) => synced.map(|()| reading.report).map_err(ImportError::from),
            Err(error) => Err(reading.explain(error)),
        }
    }

    /// What the policy makes of something that was asked for, by all that was ever imported; none if it
    /// was no derivation.
    pub fn verdict(&self, exported: &Exported) -> Result<Option<Verdict>, CacheError> {
        let Some(asked) = exported.derivation.map(Asked::Static) else { return Ok(None) };
        let Some(remote) = imported(self.store.root()) else {
            return Ok(Some(self.policy.decide(asked, &[]).verdict));
        };
        let signers: Vec<_> = self.policy.trusted.keys().copied().map(Some).chain([None]).collect();
        let statements = Cache::open(remote)?.statements(asked, &signers)?;
        let evidence = |statement: Sealed<Statement>| Evidence {
            cache: "imported".to_owned(),
            trusted_outright: true,
            statement,
        };
        let evidence: Vec<Evidence> = statements.into_iter().map(evidence).collect();
        Ok(Some(self.policy.decide(asked, &evidence).verdict))
    }
}

/// An export on its way in.
struct Reading<'a> {
    importer: &'a Importer<'a>,
    stream: Stream,
    name: &'a str,
    fetcher: Fetcher<'a>,
    report: Report,
}

impl Reading<'_> {
    fn all(&mut self) -> Result<(), ImportError> {
        let begin = self.stream.begin(Contents::LIMIT_BYTES + SEAL_BYTES);
        let not_an_export = || ImportError::NotAnExport { name: self.name.to_owned() };
        let contents = match begin {
            Ok(Some(contents)) => contents,
            Ok(None) => return Err(not_an_export()),
            Err(error) => return Err(self.read_error(error)),
        };
        let contents = self.sealed::<Contents>("its beginning", &contents)?;
        self.report.contents = contents.unverified().clone();
        while let Some(header) = self.header()? {
            let kind = header.path.as_str().split('/').next().unwrap_or_default();
            match kind {
                "objects" => self.object(&header)?,
                // One that nothing here needs is passed.
                "packs" => {}
                "realisations" => self.statement(&header)?,
                _ => return Err(self.damaged(format!("{} does not belong there", header.path))),
            }
        }
        let asked: Vec<ObjectId> = self.report.contents.asked.iter().map(|it| it.object).collect();
        if !self.importer.store.contains_closure(&asked)? {
            return Err(self.damaged("it lacks objects that it says it has"));
        }
        Ok(())
    }

    /// Reads an object's record, and fetches the object from the pack that follows if it isn't here.
    fn object(&mut self, header: &Header) -> Result<(), ImportError> {
        let bytes = self.content(header, ObjectRecord::LIMIT_BYTES + SEAL_BYTES)?;
        let sealed = self.sealed::<ObjectRecord>(header.path.as_str(), &bytes)?;
        let record = sealed.unverified();
        let id = record.object.id();
        if header.path != CachePath::object(&id) {
            return Err(self.damaged(format!("{} describes the object {id}", header.path)));
        }
        let store = self.importer.store;
        if store.contains(&id)? {
            self.report.present += 1;
            return Ok(());
        }
        for reference in record.object.references(ReferenceKind::ALL) {
            if !store.contains(&reference)? {
                let reason = format!("{} needs {reference}, which comes after it", header.path);
                return Err(self.damaged(reason));
            }
        }
        if !store.tree_path(&record.object.tree).is_dir() {
            self.pack(record)?;
        }
        self.fetcher.fetch(record)?;
        self.report.objects += 1;
        Ok(())
    }

    /// Reads the index of the pack that has to follow a record, up to where its blocks begin.
    fn pack(&mut self, record: &ObjectRecord) -> Result<(), ImportError> {
        let location = &record.location;
        let path = CachePath::pack(&location.pack);
        let blocks_end = location.pack_bytes.checked_sub(location.index_bytes);
        let Some(blocks_end) = blocks_end else {
            return Err(self.damaged(format!("{path} is shorter than its index")));
        };
        let expected = [blocks_end..location.pack_bytes, 0..blocks_end];
        let mut index = Vec::new();
        for (number, bytes) in expected.into_iter().enumerate() {
            let header = self.header()?;
            let expected = Header { path: path.clone(), bytes };
            if header.as_ref() != Some(&expected) {
                let reason = format!("{path} does not follow the record that names it");
                return Err(self.damaged(reason));
            }
            if number == 0 {
                let limit = MAX_INDEX_BYTES;
                index = self.stream.content(limit).map_err(|error| self.read_error(error))?;
            }
        }
        self.stream.offer(&path, index).map_err(|error| self.read_error(error))
    }

    fn statement(&mut self, header: &Header) -> Result<(), ImportError> {
        let bytes = self.content(header, Statement::LIMIT_BYTES + SEAL_BYTES)?;
        let sealed = self.sealed::<Statement>(header.path.as_str(), &bytes)?;
        let signer = sealed.signer();
        if header.path != CachePath::by_static(&sealed.unverified().derivation, signer) {
            return Err(self.damaged(format!("{} is about something else", header.path)));
        }
        let Importer { store, policy, trusted_outright } = self.importer;
        if signer.is_some_and(|key| policy.revoked.contains(&key)) {
            self.report.revoked += 1;
        } else if signer.is_none() && !trusted_outright {
            self.report.unsigned += 1;
        } else {
            if let Err(SealError::Wrong { name, key }) = sealed.check(&policy.trusted) {
                let (url, path) = (self.name.to_owned(), header.path.to_string());
                let key = format!("{name} ({key})");
                return Err(CacheError::Signature { url, path, key }.into());
            }
            self.report.statements += u64::from(store.keep_imported(&sealed)?);
        }
        Ok(())
    }

    fn header(&self) -> Result<Option<Header>, ImportError> {
        self.stream.next().map_err(|error| self.read_error(error))
    }

    /// All of a file that comes in one piece.
    fn content(&self, header: &Header, limit: u64) -> Result<Vec<u8>, ImportError> {
        if header.bytes.start != 0 {
            return Err(self.damaged(format!("{} does not begin at its beginning", header.path)));
        }
        self.stream.content(limit).map_err(|error| self.read_error(error))
    }

    fn sealed<T: Sealable>(&self, what: &str, bytes: &[u8]) -> Result<Sealed<T>, ImportError> {
        Sealed::from_bytes(bytes).map_err(|error| self.damaged(format!("{what}: {error}")))
    }

    fn damaged(&self, reason: impl Into<String>) -> ImportError {
        ImportError::Damaged { name: self.name.to_owned(), reason: reason.into() }
    }

    fn read_error(&self, source: Error) -> ImportError {
        match source.kind() {
            ErrorKind::InvalidData => self.damaged(source.to_string()),
            _ => ImportError::Read { name: self.name.to_owned(), source },
        }
    }

    /// An error that follows from how the reading ended is told as that.
    fn explain(&self, error: ImportError) -> ImportError {
        let by_reading = matches!(
            error,
            ImportError::Read { .. } | ImportError::Cache(CacheError::Transport { .. })
        );
        if !by_reading {
            return error;
        }
        let name = self.name.to_owned();
        let all = self.report.contents.objects;
        match self.stream.broken() {
            Some(_) if self.stream.is_truncated() => {
                let whole = self.report.objects + self.report.present;
                ImportError::Truncated { name, whole, all }
            }
            Some(source) => ImportError::Read { name, source },
            None => error,
        }
    }
}
