//! Exports: a closure as one file, for a stick or a pipe.
//!
//! ```text
//! "srp export 1\n"
//! contents    length, then a sealed file: what was asked for, and how much there is
//! entries     each: path in a cache (text), offset (integer), content (bytes)
//! end         an empty path: eight zero bytes
//! ```
//!
//! The entries are a cache's files in the order in which a reader with an empty store would ask for
//! them, so that it can be read from a pipe with little memory: for each object, what it refers to
//! before it, its record and its pack, the pack's index before its blocks; then the statements. The
//! same store exports the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use crate::assurance::Assurance;
use crate::cache::closure::ObjectRecord;
use crate::cache::key::SecretKey;
use crate::cache::packs::Packs;
use crate::cache::sealed::{Sealable, Sealed};
use crate::cache::{CacheError, CachePath};
use crate::digest::{Domain, ObjectId, StaticHash};
use crate::encode::{Canonical, DecodeError, Decoder, Encoder};
use crate::error::{IoContext, StoreError};
use crate::object::ReferenceKind;
use crate::store::Store;

/// What an export begins with.
pub(crate) const MAGIC: &[u8] = b"srp export 1\n";
/// Where the next entry's path would be: one of no length.
const END: [u8; 8] = [0; 8];
/// What is copied at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Something that an export was asked for.
///
/// Canonical encoding: the fields in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// As it was called: an attribute, or an object's name.
    pub name: String,
    /// The derivation that it came out of, if that was asked for.
    pub derivation: Option<StaticHash>,
    /// The object.
    pub object: ObjectId,
}

/// What an export says of itself at its beginning. It is for people: what is believed is what
/// comes after it.
///
/// Canonical encoding: the fields in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// What was asked for.
    pub asked: Vec<Exported>,
    /// How many objects there are.
    pub objects: u64,
    /// The sum of their files' lengths.
    pub size_bytes: u64,
}

/// What it takes to export.
#[derive(Debug)]
pub struct Exporter<'a> {
    /// Where everything is from.
    pub store: &'a Store,
    /// Where trees are packed before they are written.
    pub packs: &'a Packs,
    /// Who signs; nobody if there is no key.
    pub key: Option<&'a SecretKey>,
    /// Who builds here, for statements.
    pub builder: &'a str,
}

/// Why there is no export, or only the beginning of one.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// What is written to takes no more.
    #[error("can't write the export")]
    Write {
        /// What the system says.
        source: io::Error,
    },
    /// What was asked for can't be had.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<StoreError> for ExportError {
    fn from(error: StoreError) -> ExportError {
        ExportError::Cache(error.into())
    }
}

impl Exporter<'_> {
    /// Writes `asked` and all that it refers to; of what was asked for as a derivation also the
    /// statements on everything in it.
    ///
    /// While one pack is being written out, the next one is made.
    pub fn export(
        &self,
        asked: &[Exported],
        to: &mut (dyn Write + Send),
    ) -> Result<Contents, ExportError> {
        let ids = self.in_order(asked)?;
        let mut contents =
            Contents { asked: asked.to_vec(), objects: ids.len() as u64, size_bytes: 0 };
        for id in &ids {
            contents.size_bytes += self.store.info(id)?.size_bytes;
        }
        let head = Sealed::new(contents.clone(), None).to_bytes();
        let mut encoder = Encoder::default();
        encoder.raw(MAGIC);
        encoder.bytes(&head);
        write(to, &encoder.finish())?;
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            let ids = &ids;
            scope.spawn(move || {
                let mut sent = BTreeSet::new();
                for id in ids {
                    let packed = self.packed(id, &mut sent);
                    let failed = packed.is_err();
                    if sender.send(packed).is_err() || failed {
                        break;
                    }
                }
            });
            for packed in receiver {
                let (record, pack) = packed?;
                write_object(&record, pack, to)?;
            }
            Ok::<_, ExportError>(())
        })?;
        self.statements(asked, &ids.into_iter().collect(), to)?;
        write(to, &END)?;
        to.flush().map_err(|source| ExportError::Write { source })?;
        Ok(contents)
    }

    /// The closure of what was asked for, each object after what it refers to: whoever gets only
    /// the beginning gets whole closures.
    fn in_order(&self, asked: &[Exported]) -> Result<Vec<ObjectId>, StoreError> {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        let mut roots = Vec::new();
        for it in asked {
            roots.push(it.object);
            // Who is to have a derivation realised needs every output of it.
            if let Some(claim) = it.derivation.map(|hash| self.store.claim(&hash)).transpose()? {
                roots.extend(claim.into_iter().flat_map(|claim| claim.outputs.into_values()));
            }
        }
        // An object is met twice: to put what it refers to before it, and when that is done.
        let mut pending: Vec<(ObjectId, bool)> =
            roots.into_iter().rev().map(|id| (id, false)).collect();
        while let Some((id, done)) = pending.pop() {
            if done {
                order.push(id);
            } else if seen.insert(id) {
                pending.push((id, true));
                let references: BTreeSet<ObjectId> =
                    self.store.info(&id)?.object.references(ReferenceKind::ALL).collect();
                pending.extend(references.iter().rev().map(|id| (*id, false)));
            }
        }
        Ok(order)
    }

    /// An object's record and its pack, unless that is in the export already.
    fn packed(
        &self,
        id: &ObjectId,
        sent: &mut BTreeSet<CachePath>,
    ) -> Result<(ObjectRecord, Option<File>), StoreError> {
        let record = self.packs.record(self.store, &self.store.info(id)?)?;
        let pack = record.location.pack;
        if !sent.insert(CachePath::pack(&pack)) {
            return Ok((record, None));
        }
        let file = self.packs.file(self.store, &pack)?;
        let gone = || StoreError::Damaged {
            path: self.store.tree_path(&record.object.tree),
            reason: "it gives another pack than before".to_owned(),
        };
        Ok((record.clone(), Some(file.ok_or_else(gone)?)))
    }

    fn statements(
        &self,
        asked: &[Exported],
        objects: &BTreeSet<ObjectId>,
        to: &mut dyn Write,
    ) -> Result<(), ExportError> {
        let mut claims = BTreeMap::new();
        for root in asked.iter().filter_map(|it| it.derivation) {
            claims.extend(self.store.claims(&root)?);
        }
        let assurance = Assurance::within(self.store.validity().signing);
        let assured = self.store.assure_to_sign(
            self.key,
            claims.values(),
            objects.iter().copied(),
            &assurance,
        )?;
        for (derivation, claim) in &claims {
            if claim.outputs.values().all(|id| objects.contains(id)) {
                let (store, builder) = (self.store, self.builder);
                let stated = store.statements(derivation, claim, builder, self.key, &assured)?;
                for sealed in stated {
                    let path = CachePath::by_static(derivation, sealed.signer());
                    write_entry(to, &path, &sealed.to_bytes())?;
                }
            }
        }
        Ok(())
    }
}

fn write_object(
    record: &ObjectRecord,
    pack: Option<File>,
    to: &mut dyn Write,
) -> Result<(), ExportError> {
    let path = CachePath::object(&record.object.id());
    write_entry(to, &path, &Sealed::new(record.clone(), None).to_bytes())?;
    let Some(pack) = pack else { return Ok(()) };
    let location = &record.location;
    let path = CachePath::pack(&location.pack);
    let blocks_end = location.pack_bytes - location.index_bytes;
    for part in [blocks_end..location.pack_bytes, 0..blocks_end] {
        write(to, &header(&path, part.start, part.end - part.start))?;
        copy(&pack, &path, part, to)?;
    }
    Ok(())
}

/// Copies bytes of a pack.
fn copy(
    pack: &File,
    path: &CachePath,
    bytes: Range<u64>,
    to: &mut dyn Write,
) -> Result<(), ExportError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = bytes.start;
    while at < bytes.end {
        let most = (bytes.end - at).min(CHUNK_BYTES as u64) as usize;
        pack.read_exact_at(&mut buffer[..most], at).at("read", Path::new(path.as_str()))?;
        write(to, &buffer[..most])?;
        at += most as u64;
    }
    Ok(())
}

fn write_entry(to: &mut dyn Write, path: &CachePath, content: &[u8]) -> Result<(), ExportError> {
    write(to, &header(path, 0, content.len() as u64))?;
    write(to, content)
}

fn header(path: &CachePath, offset: u64, length: u64) -> Vec<u8> {
    let mut encoder = Encoder::default();
    encoder.text(path.as_str());
    encoder.integer(offset);
    encoder.integer(length);
    encoder.finish()
}

fn write(to: &mut dyn Write, bytes: &[u8]) -> Result<(), ExportError> {
    to.write_all(bytes).map_err(|source| ExportError::Write { source })
}

impl Sealable for Contents {
    const KIND: &'static str = "contents";
    const DOMAIN: Domain = Domain::ExportContents;
    const LIMIT_BYTES: u64 = 16 << 20;
    const COMPRESSED: bool = false;
}

impl Canonical for Contents {
    fn encode(&self, to: &mut Encoder) {
        self.asked.encode(to);
        to.integer(self.objects);
        to.integer(self.size_bytes);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Contents {
            asked: Vec::decode(from)?,
            objects: from.integer()?,
            size_bytes: from.integer()?,
        })
    }
}

impl Canonical for Exported {
    fn encode(&self, to: &mut Encoder) {
        to.text(&self.name);
        self.derivation.encode(to);
        self.object.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Exported {
            name: String::decode(from)?,
            derivation: Option::decode(from)?,
            object: ObjectId::decode(from)?,
        })
    }
}
