//! Reads out of ELF files what the loader would: the interpreter, the needed libraries and where
//! to look for them; and, for the search of forbidden names, the compressed sections.
//!
//! It reads the few ranges that it wants, each bounded, never a whole file. It isn't a validator:
//! whatever the loader would refuse has no needs.

use std::io::{Read, Seek};
use std::ops::Range;

use object::elf::{self, FileHeader32, FileHeader64, FileType};
use object::read::elf::{CompressionHeader, Dyn, FileHeader, ProgramHeader, SectionHeader};
use object::read::{ReadCache, ReadRef};
use object::{Endianness, elf::CompressionType};

use super::Need;
use super::machine::{Class, ElfIdent, IDENT_BYTES};

/// The most that one table of a file (program headers, sections, the dynamic segment) may take.
const TABLE_LIMIT_BYTES: u64 = 8 << 20;

/// The most `DT_NEEDED` entries that are believed; the largest programs have a few hundred.
const NEEDED_LIMIT: usize = 4096;

/// The longest string that is read.
const STRING_LIMIT_BYTES: u64 = 4096;

/// What a loader reads of a program or shared library.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Elf {
    ident: Option<ElfIdent>,
    interpreter: Option<String>,
    needed: Vec<String>,
    run_path: Vec<String>,
}

impl Elf {
    /// The needs of a file that lies in `directory` of its tree.
    pub(super) fn needs(self, directory: &str) -> Vec<Need> {
        let Some(elf) = self.ident else {
            return Vec::new();
        };
        let at_origin = |text: &str| {
            let origin = format!("/{directory}");
            text.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin)
        };
        let search: Vec<String> = self.run_path.iter().map(|entry| at_origin(entry)).collect();
        let libraries = self.needed.iter().map(|soname| Need::Library {
            soname: at_origin(soname),
            elf,
            search: search.clone(),
        });
        let interpreter = self.interpreter.map(|path| Need::Interpreter { path, elf });
        libraries.chain(interpreter).collect()
    }
}

/// Reads what the loader would read of `file`. The error says what was wrong with it.
pub(super) fn read<F: Read + Seek>(file: F) -> Result<Elf, &'static str> {
    let cache = ReadCache::new(file);
    let data = Bounded(&cache);
    let head = data.read_bytes_at(0, IDENT_BYTES as u64).map_err(|()| "it ends in its header")?;
    let ident = ElfIdent::parse(head).ok_or("its class or byte order is unknown")?;
    match ident.class {
        Class::Elf32 => loader_view::<FileHeader32<Endianness>, _>(data, ident),
        Class::Elf64 => loader_view::<FileHeader64<Endianness>, _>(data, ident),
    }
}

fn loader_view<'data, H, R>(data: R, ident: ElfIdent) -> Result<Elf, &'static str>
where
    H: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let header = H::parse(data).map_err(|_| "its header is malformed")?;
    let endian = header.endian().map_err(|_| "its byte order is unknown")?;
    let mut found = Elf { ident: Some(ident), ..Elf::default() };
    if !matches!(header.e_type(endian), FileType(2 | 3)) {
        return Ok(found); // Neither ET_EXEC nor ET_DYN: nothing that is loaded.
    }
    let segments =
        header.program_headers(endian, data).map_err(|_| "its program headers are malformed")?;
    if is_split_debug(header, segments, endian, data) {
        return Ok(found);
    }
    if let Some(interpreter) = segments
        .iter()
        .find(|segment| segment.p_type(endian) == elf::PT_INTERP && has_content(*segment, endian))
    {
        let range = bounded_range(interpreter.file_range(endian));
        let path =
            data.read_bytes_at_until(range, 0).map_err(|()| "its interpreter is malformed")?;
        found.interpreter = Some(String::from_utf8_lossy(path).into_owned());
    }
    if let Some(dynamic) = segments
        .iter()
        .find(|segment| segment.p_type(endian) == elf::PT_DYNAMIC && has_content(*segment, endian))
    {
        let entries = dynamic
            .dynamic(endian, data)
            .map_err(|_| "its dynamic segment is malformed")?
            .unwrap_or_default();
        read_dynamic(&mut found, entries, segments, endian, data)?;
    }
    Ok(found)
}

fn read_dynamic<'data, D, P, R>(
    found: &mut Elf,
    entries: &[D],
    segments: &[P],
    endian: Endianness,
    data: R,
) -> Result<(), &'static str>
where
    D: Dyn<Endian = Endianness>,
    P: ProgramHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let last = entries.iter().position(|entry| entry.tag(endian) == elf::DT_NULL);
    let entries = &entries[..last.unwrap_or(entries.len())];
    let value_of = |tag| {
        let entry = entries.iter().rfind(|entry| entry.tag(endian) == tag);
        entry.map(|entry| entry.val(endian))
    };
    let needed: Vec<u64> = entries
        .iter()
        .filter(|entry| entry.tag(endian) == elf::DT_NEEDED)
        .map(|entry| entry.val(endian))
        .collect();
    if needed.len() > NEEDED_LIMIT {
        return Err("it needs more libraries than can be believed");
    }
    if needed.is_empty() {
        return Ok(());
    }
    let strings = value_of(elf::DT_STRTAB)
        .and_then(|address| file_offset(address, segments, endian))
        .ok_or("its string table is nowhere in the file")?;
    let end = data.len().map_err(|()| "its length is unknown")?;
    let string = |offset: u64| {
        let start = strings.checked_add(offset).filter(|&start| start < end)?;
        let range = start..end.min(start.saturating_add(STRING_LIMIT_BYTES));
        let bytes = data.read_bytes_at_until(range, 0).ok()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    };
    for offset in needed {
        found.needed.push(string(offset).ok_or("the name of a needed library is malformed")?);
    }
    // DT_RPATH counts only where there is no DT_RUNPATH.
    if let Some(offset) = value_of(elf::DT_RUNPATH).or_else(|| value_of(elf::DT_RPATH)) {
        let path = string(offset).ok_or("its library search path is malformed")?;
        found.run_path =
            path.split(':').filter(|entry| !entry.is_empty()).map(str::to_owned).collect();
    }
    Ok(())
}

fn has_content<P: ProgramHeader<Endian = Endianness>>(segment: &P, endian: Endianness) -> bool {
    segment.p_filesz(endian).into() > 0
}

fn bounded_range((offset, size): (u64, u64)) -> Range<u64> {
    offset..offset.saturating_add(size.min(STRING_LIMIT_BYTES))
}

fn file_offset<P: ProgramHeader<Endian = Endianness>>(
    address: u64,
    segments: &[P],
    endian: Endianness,
) -> Option<u64> {
    segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD).find_map(|segment| {
        let start: u64 = segment.p_vaddr(endian).into();
        let within = address.checked_sub(start)?;
        let (offset, size) = segment.file_range(endian);
        if within < size { offset.checked_add(within) } else { None }
    })
}

/// Whether the file is the debugging half of a program: it keeps the program headers, but the
/// sections that they point at have no bytes (`SHT_NOBITS`), so the bytes there are others.
fn is_split_debug<'data, H, R>(
    header: &H,
    segments: &[H::ProgramHeader],
    endian: Endianness,
    data: R,
) -> bool
where
    H: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let Ok(sections) = header.section_headers(endian, data) else {
        return false; // No sections, or broken ones: the loader does not look at them.
    };
    let hollow = |address: u64| {
        sections.iter().any(|section| {
            section.sh_type(endian) == elf::SHT_NOBITS
                && section.sh_size(endian).into() > 0
                && section.sh_addr(endian).into() == address
                && !section.sh_flags(endian).contains(elf::SHF_TLS)
        })
    };
    segments
        .iter()
        .filter(|segment| matches!(segment.p_type(endian), elf::PT_DYNAMIC | elf::PT_INTERP))
        .any(|segment| hollow(segment.p_vaddr(endian).into()))
}

/// A section whose bytes are compressed.
pub(super) struct CompressedSection {
    /// Its name, such as `.debug_str`.
    pub(super) name: String,
    /// Where in the file the compressed stream is.
    pub(super) stream: Range<u64>,
    /// What it was compressed with.
    pub(super) compression: Compression,
}

/// What sections are compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Zlib,
    Zstd,
}

/// The compressed sections of `file`, which is handed back. None when it isn't readable as ELF.
pub(super) fn compressed_sections<F: Read + Seek>(file: F) -> (Vec<CompressedSection>, F) {
    let cache = ReadCache::new(file);
    let data = Bounded(&cache);
    let head = data.read_bytes_at(0, IDENT_BYTES as u64).ok();
    let sections = match head.and_then(ElfIdent::parse).map(|ident| ident.class) {
        Some(Class::Elf32) => section_view::<FileHeader32<Endianness>, _>(data),
        Some(Class::Elf64) => section_view::<FileHeader64<Endianness>, _>(data),
        None => None,
    };
    (sections.unwrap_or_default(), cache.into_inner())
}

fn section_view<'data, H, R>(data: R) -> Option<Vec<CompressedSection>>
where
    H: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, data).ok()?;
    let end = data.len().ok()?;
    let mut found = Vec::new();
    for section in sections.iter() {
        let name = sections.section_name(endian, section).unwrap_or_default();
        let (compression, offset, size) = match section.compression(endian, data) {
            Ok(Some((header, offset, size))) => match header.ch_type(endian) {
                CompressionType(1) => (Compression::Zlib, offset, size),
                CompressionType(2) => (Compression::Zstd, offset, size),
                _ => continue,
            },
            // Before the flag there was a name and "ZLIB" with eight bytes of size.
            Ok(None) if name.starts_with(b".zdebug") => match section.file_range(endian) {
                Some((offset, size)) => {
                    (Compression::Zlib, offset.saturating_add(12), size.saturating_sub(12))
                }
                None => continue,
            },
            Ok(None) | Err(_) => continue,
        };
        found.push(CompressedSection {
            name: String::from_utf8_lossy(name).into_owned(),
            // A file may claim more than it has: what it has is searched.
            stream: offset.min(end)..offset.saturating_add(size).min(end),
            compression,
        });
    }
    Some(found)
}

/// Refuses reads that a well-formed file has no use for, so that lengths in a foreign file can't
/// make us allocate: the file may be sparse, and far larger than memory.
struct Bounded<'cache, F: Read + Seek>(&'cache ReadCache<F>);

impl<F: Read + Seek> Clone for Bounded<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Read + Seek> Copy for Bounded<'_, F> {}

impl<'cache, F: Read + Seek> ReadRef<'cache> for Bounded<'cache, F> {
    fn len(self) -> Result<u64, ()> {
        self.0.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'cache [u8], ()> {
        if size > TABLE_LIMIT_BYTES {
            return Err(());
        }
        self.0.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'cache [u8], ()> {
        self.0.read_bytes_at_until(range, delimiter)
    }
}
