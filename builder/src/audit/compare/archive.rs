//! Archives (ar, tar, zip): by member, and by field of its header.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read};

use object::read::archive::ArchiveFile;

use super::part::{Looking, Sign};
use super::{LARGEST_BYTES, binary, contents};

/// More members aren't looked at.
const MOST_MEMBERS: usize = 100_000;

/// A member of any kind of archive, as far as they have it.
#[derive(Default)]
struct Member {
    /// Its name, and which one of that name it is.
    name: (String, usize),
    /// Seconds since 1970, or as the archive has it.
    time: String,
    /// Other fields with times, each with its name.
    more_times: String,
    owner: String,
    mode: u64,
    /// What a link points to, or empty.
    link: String,
    bytes: Vec<u8>,
}

/// Compares two ar archives; false if they aren't both such.
pub(super) fn compare_ar(
    looking: &mut Looking<'_>,
    before: &[u8],
    after: &[u8],
    depth: u32,
) -> bool {
    let (Some(one), Some(other)) = (ar_members(before), ar_members(after)) else { return false };
    members(looking, &one, &other, before, after, depth);
    true
}

/// Compares two tar archives; false if they aren't both such.
pub(super) fn compare_tar(
    looking: &mut Looking<'_>,
    before: &[u8],
    after: &[u8],
    depth: u32,
) -> bool {
    let (Some(one), Some(other)) = (tar_members(before), tar_members(after)) else { return false };
    members(looking, &one, &other, before, after, depth);
    true
}

/// Compares two zip archives; false if they aren't both such.
pub(super) fn compare_zip(
    looking: &mut Looking<'_>,
    before: &[u8],
    after: &[u8],
    depth: u32,
) -> bool {
    let (Some(one), Some(other)) = (zip_members(before), zip_members(after)) else { return false };
    members(looking, &one, &other, before, after, depth);
    true
}

fn members(
    looking: &mut Looking<'_>,
    before: &[Member],
    after: &[Member],
    all_before: &[u8],
    all_after: &[u8],
    depth: u32,
) {
    let mut told = false;
    let names =
        |members: &[Member]| members.iter().map(|member| member.name.clone()).collect::<Vec<_>>();
    let (one, other) = (names(before), names(after));
    let sets: [BTreeSet<_>; 2] = [&one, &other].map(|list| list.iter().collect());
    for (name, _) in sets[0].difference(&sets[1]) {
        looking.sides(&format!("member {name}"), "there", "not there");
        told = true;
    }
    for (name, _) in sets[1].difference(&sets[0]) {
        looking.sides(&format!("member {name}"), "not there", "there");
        told = true;
    }
    if sets[0] == sets[1] && one != other {
        let shown = |names: &[(String, usize)]| {
            let shown: Vec<&str> = names.iter().take(12).map(|(name, _)| name.as_str()).collect();
            shown.join(" ")
        };
        looking.sign(Sign::Order, "order of members", &shown(&one), &shown(&other));
        told = true;
    }
    let by_name: BTreeMap<_, _> = after.iter().map(|member| (&member.name, member)).collect();
    for member in before {
        let Some(rebuilt) = by_name.get(&member.name) else { continue };
        let place = |field: &str| format!("member {}: {field}", member.name.0);
        let mut field = |sign, name: &str, one: &str, other: &str| {
            if one != other {
                looking.sign(sign, &place(name), one, other);
                told = true;
            }
        };
        field(Sign::MemberTime, "modification time", &member.time, &rebuilt.time);
        field(Sign::MemberTime, "other times", &member.more_times, &rebuilt.more_times);
        field(Sign::MemberOwner, "owner", &member.owner, &rebuilt.owner);
        let modes = [member, rebuilt].map(|it| format!("{:o}", it.mode));
        field(Sign::MemberMode, "mode", &modes[0], &modes[1]);
        if member.link != rebuilt.link {
            looking.sides(&place("link"), &member.link, &rebuilt.link);
            told = true;
        }
        if member.bytes != rebuilt.bytes {
            looking.inside(&format!("member {}", member.name.0), |looking| {
                contents(looking, &member.bytes, &rebuilt.bytes, depth + 1);
            });
            told = true;
        }
    }
    if !told {
        binary::compare(looking, "between the members", all_before, all_after);
    }
}

fn ar_members(bytes: &[u8]) -> Option<Vec<Member>> {
    if !bytes.starts_with(b"!<arch>\n") {
        return None;
    }
    let archive = ArchiveFile::parse(bytes).ok()?;
    let mut members = Members::default();
    for member in archive.members() {
        let member = member.ok()?;
        members.push(Member {
            name: (String::from_utf8_lossy(member.name()).into_owned(), 0),
            time: member.date().unwrap_or_default().to_string(),
            owner: format!(
                "{}:{}",
                member.uid().unwrap_or_default(),
                member.gid().unwrap_or_default()
            ),
            mode: member.mode().unwrap_or_default(),
            bytes: member.data(bytes).ok()?.to_vec(),
            ..Member::default()
        })?;
    }
    Some(members.list)
}

fn tar_members(bytes: &[u8]) -> Option<Vec<Member>> {
    if bytes.get(257..262) != Some(b"ustar") {
        return None;
    }
    let mut archive = tar::Archive::new(bytes);
    let mut members = Members::default();
    for entry in archive.entries().ok()? {
        let mut entry = entry.ok()?;
        let header = entry.header().clone();
        let text =
            |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry.link_name_bytes().unwrap_or_default();
        let link = String::from_utf8_lossy(&link).into_owned();
        let times = entry.pax_extensions().ok().flatten().into_iter().flatten().flatten();
        let times = times.filter(|field| field.key().is_ok_and(|key| key.ends_with("time")));
        let times = times.filter_map(|it| Some(format!("{}={}", it.key().ok()?, it.value().ok()?)));
        let more_times = times.collect::<Vec<_>>().join(" ");
        let mut content = Vec::new();
        entry.by_ref().take(LARGEST_BYTES).read_to_end(&mut content).ok()?;
        members.push(Member {
            name: (name, 0),
            time: header.mtime().unwrap_or_default().to_string(),
            more_times,
            owner: format!(
                "{}:{} {}:{}",
                header.uid().unwrap_or_default(),
                header.gid().unwrap_or_default(),
                text(header.username_bytes()),
                text(header.groupname_bytes())
            ),
            mode: u64::from(header.mode().unwrap_or_default()),
            link,
            bytes: content,
        })?;
    }
    Some(members.list)
}

fn zip_members(bytes: &[u8]) -> Option<Vec<Member>> {
    if !bytes.starts_with(b"PK") {
        return None;
    }
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).ok()?;
    let mut members = Members::default();
    let mut room = LARGEST_BYTES;
    for number in 0..archive.len() {
        let mut file = archive.by_index(number).ok()?;
        let mut content = Vec::new();
        file.by_ref().take(room + 1).read_to_end(&mut content).ok()?;
        // A small archive can hold far more than there is memory.
        room = room.checked_sub(content.len() as u64)?;
        let time = file.last_modified().map(|time| time.to_string());
        let (owner, more_times) = zip_extra(&file.extra_data().unwrap_or_default());
        members.push(Member {
            name: (String::from_utf8_lossy(file.name_raw()).into_owned(), 0),
            time: time.unwrap_or_default(),
            more_times,
            owner,
            mode: file.unix_mode().unwrap_or_default().into(),
            bytes: content,
            ..Member::default()
        })?;
    }
    Some(members.list)
}

/// What follows a zip member's fixed fields, in hexadecimal: its owner, and the rest, which is
/// times. Each field has a number, a length and its bytes (APPNOTE 4.5; Info-ZIP's owners are
/// `ux`).
fn zip_extra(mut extra: &[u8]) -> (String, String) {
    let (mut owner, mut times) = (String::new(), String::new());
    while let Some(([low, high, short, long], rest)) = extra.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*short, *long])).min(rest.len());
        let (field, after) = rest.split_at(length);
        let bytes = field.iter().map(|byte| format!("{byte:02x}"));
        if [*low, *high] == *b"ux" { &mut owner } else { &mut times }.extend(bytes);
        extra = after;
    }
    (owner, times)
}

/// Members in their order, those of one name numbered.
#[derive(Default)]
struct Members {
    list: Vec<Member>,
    seen: BTreeMap<String, usize>,
}

impl Members {
    /// None if there are too many.
    fn push(&mut self, mut member: Member) -> Option<()> {
        let seen = self.seen.entry(member.name.0.clone()).or_default();
        member.name.1 = *seen;
        *seen += 1;
        self.list.push(member);
        (self.list.len() <= MOST_MEMBERS).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn tar_of(time: u64, names: &[&str]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_ustar();
            header.set_size(1);
            header.set_mtime(time);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, &b"x"[..]).expect("appended");
        }
        archive.into_inner().expect("finished")
    }

    #[test]
    fn fields_of_members_are_told() {
        let mut looking = Looking::new(&[]);
        assert!(compare_tar(&mut looking, &tar_of(1, &["a", "b"]), &tar_of(2, &["b", "a"]), 0));
        let (parts, signs) = looking.found();
        let places: Vec<&str> = parts.iter().map(|part| part.place.as_str()).collect();
        assert_eq!(
            places,
            ["order of members", "member a: modification time", "member b: modification time"]
        );
        assert_eq!(signs.into_iter().collect::<Vec<_>>(), [Sign::Order, Sign::MemberTime]);
    }

    fn zip_of(day: u8, content: &[u8]) -> Vec<u8> {
        let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let time = zip::DateTime::from_date_and_time(2026, 11, day, 10, 11, 12).expect("a time");
        let options = zip::write::SimpleFileOptions::default().last_modified_time(time);
        archive.start_file("a.txt", options).expect("begun");
        archive.write_all(content).expect("written");
        archive.finish().expect("finished").into_inner()
    }

    #[test]
    fn zip_is_told_by_member_too() {
        let mut looking = Looking::new(&[]);
        assert!(compare_zip(&mut looking, &zip_of(22, b"one\n"), &zip_of(23, b"two\n"), 0));
        let (parts, signs) = looking.found();
        let places: Vec<&str> = parts.iter().map(|part| part.place.as_str()).collect();
        assert_eq!(places, ["member a.txt: modification time", "member a.txt: line 1"]);
        assert_eq!(parts[0].lines, ["-2026-11-22 10:11:12", "+2026-11-23 10:11:12"]);
        assert!(signs.contains(&Sign::MemberTime));
        assert!(!compare_zip(&mut Looking::new(&[]), b"PK\x03\x04broken", b"PK\x03\x04other", 0));
    }

    #[test]
    fn owners_in_zip_are_no_times() {
        let field = |owner: u8| [b"UT\x02\0\x03\x09ux\x03\0\x01\x01".as_slice(), &[owner]].concat();
        assert_eq!(zip_extra(&field(7)), ("010107".to_owned(), "0309".to_owned()));
        assert_eq!(zip_extra(b"ux\xff\0\x01"), ("01".to_owned(), String::new()));
        assert_eq!(zip_extra(b"ux\x01"), (String::new(), String::new()));
    }

    #[test]
    fn what_is_no_archive_is_left_to_others() {
        assert!(!compare_ar(&mut Looking::new(&[]), b"!<arch>\nbroken", b"!<arch>\nother", 0));
        assert!(!compare_tar(&mut Looking::new(&[]), b"", b"x", 0));
    }
}
