//! Extended headers: pax's records, of which names, lengths and GNU's sparse files mean something here.
//!
//! A record says its own length, so its value may hold anything, newlines too. Records with other keys
//! (times, attributes, comments) are passed over, but their form is checked: a length that lies could
//! hide a name.

use super::TarError;

/// What extended headers say of the member that follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) sparse: Sparse,
}

/// `GNU.sparse.*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Offsets and lengths in turn: of formats 0.0 (one record each) and 0.1 (one list).
    pub(super) map: Vec<u64>,
}

impl Sparse {
    pub(super) fn is_some(&self) -> bool {
        *self != Sparse::default()
    }
}

/// More pieces than any sound sparse file has.
pub(super) const MAX_EXTENTS: usize = 1 << 20;

impl Extended {
    /// Adds what an extended header for one member says.
    pub(super) fn add(&mut self, mut records: &[u8]) -> Result<(), TarError> {
        while let Some((key, value, rest)) = record(records)? {
            self.record(key, value)?;
            records = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        // An empty value takes back what was said: the header's own field counts.
        let text = |value: &[u8]| (!value.is_empty()).then(|| value.to_owned());
        match key {
            b"path" => self.path = text(value),
            b"linkpath" => self.link = text(value),
            b"size" => self.size = if value.is_empty() { None } else { Some(number(value)?) },
            b"GNU.sparse.major" => self.sparse.major = Some(number(value)?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(number(value)?),
            b"GNU.sparse.name" => self.sparse.name = text(value),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = Some(number(value)?);
            }
            b"GNU.sparse.numblocks" => {}
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let turn = usize::from(key == b"GNU.sparse.numbytes");
                if self.sparse.map.len() % 2 != turn || self.sparse.map.len() >= 2 * MAX_EXTENTS {
                    return Err(TarError::SparseMap);
                }
                self.sparse.map.push(number(value)?);
            }
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').filter(|it| !it.is_empty());
                self.sparse.map = numbers.map(number).collect::<Result<_, _>>()?;
            }
            _ if key.starts_with(b"GNU.sparse.") => return Err(TarError::SparseFormat),
            _ => {}
        }
        Ok(())
    }
}

/// Checks a global extended header. What it says of every member that follows (a commit, times) is of no
/// use; a name or length in it is taken by some programs and not by others, and so refused.
pub(super) fn check_global(mut records: &[u8]) -> Result<(), TarError> {
    while let Some((key, _, rest)) = record(records)? {
        if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
            return Err(TarError::Global { key: String::from_utf8_lossy(key).into_owned() });
        }
        records = rest;
    }
    Ok(())
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The first record's key and value, and what follows it. Zeros at the end are padding.
fn record(records: &[u8]) -> Result<Option<Record<'_>>, TarError> {
    if records.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let blank = records.iter().position(|byte| *byte == b' ').ok_or(TarError::Extended)?;
    let length = usize::try_from(number(&records[..blank])?).map_err(|_| TarError::Extended)?;
    let body = records.get(blank + 1..length).ok_or(TarError::Extended)?;
    let body = body.strip_suffix(b"\n").ok_or(TarError::Extended)?;
    let equals = body.iter().position(|byte| *byte == b'=').ok_or(TarError::Extended)?;
    Ok(Some((&body[..equals], &body[equals + 1..], &records[length..])))
}

/// A decimal number.
pub(super) fn number(text: &[u8]) -> Result<u64, TarError> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits);
    text.and_then(|text| text.parse().ok()).ok_or(TarError::Extended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_records_length_says_where_it_ends() {
        let mut extended = Extended::default();
        extended.add(b"14 path=a\nb=\n\n17 SCHILY.x=\n\n\nz\n5 y=\n\0\0").expect("sound");
        assert_eq!(extended.path.as_deref(), Some(&b"a\nb=\n"[..]));
        extended.add(b"8 path=\n").expect("sound");
        assert_eq!(extended.path, None);
        for bad in [
            &b"9 path=../../x\n"[..],
            b"path=x\n",
            b"99 path=x\n",
            b"0 \n",
            b"5 x\n\n",
            b"8 path=x",
        ] {
            assert!(Extended::default().add(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_global_header_names_nothing() {
        check_global(b"14 comment=ab\n").expect("a comment");
        assert!(matches!(check_global(b"9 path=x\n"), Err(TarError::Global { .. })));
    }
}
