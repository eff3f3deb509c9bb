//! ELF files: by section, and within code by symbol.

use std::collections::BTreeMap;

use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

use super::binary;
use super::part::{Looking, Sign};

/// Compares two ELF files; false if they aren't both such.
pub(super) fn compare(looking: &mut Looking<'_>, before: &[u8], after: &[u8]) -> bool {
    if !before.starts_with(b"\x7fELF") || !after.starts_with(b"\x7fELF") {
        return false;
    }
    let (Ok(one), Ok(other)) = (object::File::parse(before), object::File::parse(after)) else {
        return false;
    };
    let (ours, theirs) = (sections(&one), sections(&other));
    let mut told = false;
    for name in ours.keys().chain(theirs.keys().filter(|name| !ours.contains_key(*name))) {
        let shown = shown(name);
        match (ours.get(name), theirs.get(name)) {
            (Some(_), None) => looking.sides(&format!("section {shown}"), "there", "not there"),
            (None, Some(_)) => looking.sides(&format!("section {shown}"), "not there", "there"),
            (Some(a), Some(b)) if a.data().ok() == b.data().ok() && a.size() == b.size() => {
                continue;
            }
            (Some(a), Some(b)) => section(looking, &name.0, &shown, (&one, a), (&other, b)),
            (None, None) => continue,
        }
        told = true;
    }
    if !told {
        // Headers, or what lies between the sections.
        binary::compare(looking, "outside of the sections", before, after);
    }
    true
}

type Sections<'d, 'f> = BTreeMap<(String, usize), object::Section<'d, 'f>>;

/// Sections by name; those of one name numbered.
fn sections<'d, 'f>(file: &'f object::File<'d>) -> Sections<'d, 'f> {
    let mut sections = Sections::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for section in file.sections() {
        let name = String::from_utf8_lossy(section.name_bytes().unwrap_or_default()).into_owned();
        let number = seen.entry(name.clone()).or_default();
        sections.insert((name, *number), section);
        *number += 1;
    }
    sections
}

fn shown((name, number): &(String, usize)) -> String {
    if *number == 0 { name.clone() } else { format!("{name} ({})", number + 1) }
}

type In<'d, 'f> = (&'f object::File<'d>, &'f object::Section<'d, 'f>);

fn section(looking: &mut Looking<'_>, name: &str, shown: &str, one: In<'_, '_>, other: In<'_, '_>) {
    // Compressed debug information is compared as what it is.
    let data = |section: &object::Section<'_, '_>| {
        section.uncompressed_data().map(|data| data.into_owned()).unwrap_or_default()
    };
    let (before, after) = (data(one.1), data(other.1));
    let place = format!("section {shown}");
    match name {
        ".note.gnu.build-id" => {
            let id = |file: &object::File<'_>| {
                let id = file.build_id().ok().flatten().unwrap_or_default();
                id.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            };
            looking.mark(Sign::BuildId);
            looking.part(
                &format!("{place} (build id)"),
                vec![format!("-{}", id(one.0)), format!("+{}", id(other.0))],
            );
            return;
        }
        ".comment" => looking.mark(Sign::Comment),
        _ if name.starts_with(".debug") => looking.mark(Sign::DebugInfo),
        _ => {}
    }
    if one.1.kind() == SectionKind::Text {
        looking.mark(Sign::Code);
        let at = binary::first_difference(&before, &after).unwrap_or(0) as u64;
        let symbol = |(file, section): In<'_, '_>| symbol_at(file, section, at);
        let function = symbol(one).or_else(|| symbol(other));
        let place = match function {
            Some(function) => format!("{place}, function {function}, from byte {at}"),
            None => format!("{place}, from byte {at}"),
        };
        let sides = [&before, &after].map(|side| binary::hexadecimal(side, at as usize));
        looking.sides(&place, &sides[0], &sides[1]);
        return;
    }
    if !binary::strings(looking, &format!("{place}: strings"), &before, &after) {
        binary::compare(looking, &place, &before, &after);
    }
}

/// The function of a section that has this byte.
fn symbol_at(
    file: &object::File<'_>,
    section: &object::Section<'_, '_>,
    at: u64,
) -> Option<String> {
    let address = section.address() + at;
    file.symbols()
        .chain(file.dynamic_symbols())
        .filter(|symbol| symbol.section_index() == Some(section.index()) && symbol.size() > 0)
        .find(|symbol| (symbol.address()..symbol.address() + symbol.size()).contains(&address))
        .and_then(|symbol| {
            symbol.name_bytes().ok().map(|name| String::from_utf8_lossy(name).into_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This test program with a byte changed in one of its sections.
    fn changed(own: &[u8], section: &str) -> Option<Vec<u8>> {
        let file = object::File::parse(own).expect("a test program is an ELF file");
        let (offset, size) = file.section_by_name(section)?.file_range()?;
        let mut bytes = own.to_vec();
        bytes[(offset + size / 2) as usize] ^= 1;
        Some(bytes)
    }

    #[test]
    fn differences_are_told_by_section() {
        let exe = std::env::current_exe().expect("there is one");
        let own = std::fs::read(exe).expect("it can be read");
        for (section, sign) in [
            (".comment", Some(Sign::Comment)),
            (".note.gnu.build-id", Some(Sign::BuildId)),
            (".text", Some(Sign::Code)),
            (".rodata", None),
        ] {
            let Some(other) = changed(&own, section) else { continue };
            let mut looking = Looking::new(&[]);
            assert!(compare(&mut looking, &own, &other));
            let (parts, signs) = looking.found();
            assert!(!parts.is_empty(), "{section}");
            for part in &parts {
                assert!(part.place.starts_with(&format!("section {section}")), "{part:?}");
            }
            assert!(sign.is_none_or(|sign| signs.contains(&sign)), "{section}: {signs:?}");
        }
        assert!(!compare(&mut Looking::new(&[]), b"\x7fELF", &own));
    }
}
