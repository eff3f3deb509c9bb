//! `srp audit --html`: pages that people can use, whatever builds write into them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::browser::{BACKSPACE, Browser, ENTER, TAB};
use crate::support::host::{is_root, skipped};
use crate::support::{Place, Run, place};

/// Names and lines that would run, or deceive, if they weren't taken for text.
const COMPONENTS: &str = r##"
hostile = sh("hostile", r'''
    h=$(hostname)
    d=$out/usr
    for i in 1 2 3 4; do printf 'the same\nhost %s\n' "$h" > "$d/file-$i"; done
    echo "$h" > $d/'<img src=x onerror="document.title=1">'
    mkdir -p "$d/</script><script>document.title='ran'<"
    echo "</td></table><script>document.title='ran'</script>$h" > "$d/</script><script>document.title='ran'</script>"
    echo "$h" > "$d/$(printf 'photo\033[31m\342\200\256gpj\n.\377')"
    if [ $h = srp ]; then ln -s '"><script>document.title=1</script>' $d/link; else ln -s x $d/link; fi
    [ $h = srp ] || echo > "$d/only & there"
''')
broken = sh("broken", r'''
    echo "<script>document.title='ran'</script> $(pwd)"
    [ $(pwd | wc -c) = 11 ]
    echo > $out/usr/broken
''')
random = sh("random", "od -An -tx1 -N16 /dev/urandom > $out/usr/random")
innocent = sh("innocent", "echo innocent > $out/usr/innocent")
unbuilt = sh("unbuilt", "echo > $out/usr/unbuilt")
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [innocent])
return {"": root, "hostile": hostile, "broken": broken, "random": random, "innocent": innocent, "unbuilt": unbuilt}
"##;

/// A report on all of it, and where it begins.
fn report() -> (Place, PathBuf) {
    let place = Place::new(COMPONENTS);
    let built = ["t.x.hostile", "t.x.broken", "t.x.random", "t.x"];
    place.srp(&[&["realise"][..], &built].concat()).succeeded();
    let options = ["audit", "--vary", "hostname,build-path,umask", "--html", "made/report"];
    let attrs = ["t.x.innocent", "t.x.unbuilt"];
    let run = place.srp(&[&options[..], &built, &attrs].concat()).exited(5);
    let index = place.path("made/report/index.html");
    let last = format!("pages: {}\n", fs::canonicalize(&index).unwrap().display());
    assert!(run.stdout.ends_with(&last), "{run}");
    (place, index)
}

fn names(browser: &Browser) -> Vec<String> {
    let rows = browser.texts("#derivations tbody tr:not([hidden]) th");
    rows.iter().map(|it| it.split(' ').next().unwrap().to_owned()).collect()
}

/// Keeps pictures where `SRP_TEST_PICTURES` says, for people to look at.
fn picture(browser: &Browser, name: &str) {
    let Some(directory) = std::env::var_os("SRP_TEST_PICTURES") else { return };
    for scheme in ["dark", "light"] {
        browser.prefer(scheme);
        let path = Path::new(&directory).join(format!("{name}-{scheme}.png"));
        fs::write(path, browser.picture()).unwrap();
    }
}

#[test]
fn people_find_what_differs_with_mouse_and_keyboard() {
    let Some(browser) = Browser::start("an audit's pages in a browser") else { return };
    let (_place, index) = report();
    browser.requests();
    browser.open(&index);
    assert_eq!(browser.title(), "Audit");
    let counts = ["3 differing", "1 unknown", "1 identical", "1 not audited"];
    assert_eq!(browser.texts(".counts li"), counts);
    let by_status = ["broken", "hostile", "random", "unbuilt", "innocent", "root"];
    assert_eq!(names(&browser), by_status);
    picture(&browser, "index");
    browser.assert_accessible();
    the_table_says_what_each_dimension_came_to(&browser);
    rows_are_chosen_and_sorted(&browser);

    // By keyboard alone: the first thing is the way past everything else.
    browser.open(&index);
    browser.press(&TAB.to_string());
    assert_eq!(browser.text(&browser.focused()), "Skip to the derivations");
    assert!(browser.is_shown(&browser.focused()));
    browser.press(&ENTER.to_string());
    browser.tab_to("hostile 1");
    browser.press(&ENTER.to_string());
    assert_eq!(browser.title(), "hostile 1 differs – Audit");
    browser.back();
    assert_eq!(browser.title(), "Audit");

    let links = browser.all("#derivations a");
    browser.click(&links[1]);
    assert_eq!(browser.title(), "hostile 1 differs – Audit");
    picture(&browser, "hostile");
    the_differences_are_beside_each_other(&browser);
    browser.assert_accessible();
    what_a_build_wrote_is_text(&browser);
    paper_has_all_of_it(&browser);

    browser.click(&browser.find(".breadcrumb a"));
    browser.click(&browser.all("#derivations a")[0]);
    assert_eq!(browser.title(), "broken 1 differs – Audit");
    let log = browser.text(&browser.find("pre.log"));
    assert!(log.contains("<script>document.title='ran'</script> /srp/elsewhere/build"), "{log}");
    assert!(browser.texts("h2")[0].starts_with("fails when: build-path"));
    picture(&browser, "broken");
    browser.assert_accessible();

    assert_eq!(browser.console(), Vec::<String>::new());
    let below = format!("file://{}/", fs::canonicalize(index.parent().unwrap()).unwrap().display());
    let requests = browser.requests();
    assert!(requests.len() > 4, "the log of requests is empty: the test tests nothing");
    let elsewhere: Vec<_> = requests.iter().filter(|url| !url.starts_with(&below)).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    the_policy_forbids_what_might_slip_through(&browser);
}

fn the_table_says_what_each_dimension_came_to(browser: &Browser) {
    let dimensions = browser.texts("#derivations thead th.dimension");
    let cell = |row: usize, dimension: &str| {
        let column = dimensions.iter().position(|name| name == dimension).unwrap() + 3;
        let css = format!("#derivations tbody tr:nth-child({row}) > :nth-child({column})");
        browser.label(&browser.find(&css))
    };
    let (broken, hostile, random, innocent) = (1, 2, 3, 5);
    for (row, dimension, words) in [
        (broken, "build-path", "differs"),
        (broken, "hostname", "identical"),
        (hostile, "hostname", "differs"),
        (hostile, "umask", "identical"),
        (random, "umask", "no difference beyond those that appear with nothing varied"),
        (innocent, "hostname", "identical"),
        (innocent, "clock", "not varied"),
    ] {
        // A cell's name is its content, without the sign; some browsers put its title first.
        assert!(
            cell(row, dimension).contains(words),
            "{row} {dimension}: {}",
            cell(row, dimension)
        );
    }
    let reason = browser.texts("#derivations td.reason");
    assert!(reason[0].contains("not realised"), "{reason:?}");
    assert_eq!(browser.label(&browser.find(".wide")), "Derivations");
}

fn rows_are_chosen_and_sorted(browser: &Browser) {
    let choices = browser.all("#filter input[type=radio]");
    let labels: Vec<_> = choices.iter().map(|choice| browser.label(choice)).collect();
    assert_eq!(labels[..2], ["all (6)", "differs (3)"]);
    browser.click(&choices[1]);
    assert_eq!(names(browser), ["broken", "hostile", "random"]);
    assert_eq!(browser.text(&browser.find("#shown")), "3 of 6 shown");
    browser.click(&choices[0]);
    browser.click(&browser.find("#filter input[type=search]"));
    browser.press("INNO");
    assert_eq!(names(browser), ["innocent"]);
    // No form is sent, and the page stays.
    browser.press(&ENTER.to_string());
    assert_eq!(names(browser), ["innocent"]);
    browser.press(&BACKSPACE.to_string().repeat(4));
    assert_eq!(names(browser).len(), 6);

    let heading = |column: &str| format!("#derivations thead th[data-column={column}]");
    let click = |column: &str| browser.click(&browser.find(&format!("{} button", heading(column))));
    let sorted = |column: &str| browser.attribute(&browser.find(&heading(column)), "aria-sort");
    let ascending = ["broken", "hostile", "innocent", "random", "root", "unbuilt"];
    click("name");
    assert_eq!(names(browser), ascending);
    assert_eq!((sorted("name").as_deref(), sorted("status")), (Some("ascending"), None));
    click("name");
    assert_eq!(names(browser), ascending.iter().rev().copied().collect::<Vec<_>>());
    assert_eq!(sorted("name").as_deref(), Some("descending"));
    click("status");
    assert_eq!(names(browser)[..3], ["random", "hostile", "broken"], "what is equal stays");
}

/// What is shown in the tables of the path of that number.
fn sides(browser: &Browser, path: usize, what: &str) -> Vec<String> {
    browser.texts(&format!("details:nth-of-type({path}) .sides {what}"))
}

fn the_differences_are_beside_each_other(browser: &Browser) {
    let headings = browser.texts("main h2");
    assert_eq!(headings[0], "differs when: hostname (srp → audit-host)");
    let causes = browser.texts(".causes strong");
    assert_eq!(causes[0], "the host's name is in the output");
    let open = || browser.all("details[open]").len();
    let all = browser.all("details");
    assert_eq!((all.len(), open()), (7, 3), "{:?}", browser.texts("summary"));
    assert_eq!(sides(browser, 7, "ins").concat(), "", "it is folded");
    let summaries = browser.all("summary");
    browser.click(&summaries[6]);
    assert_eq!(open(), 4);
    assert_eq!(sides(browser, 7, "del"), ["srp"]);
    assert_eq!(sides(browser, 7, "ins"), ["audit-host"]);
    assert_eq!(browser.text(&browser.find("details:nth-of-type(7) .sides caption")), "line 1");
    // And by keyboard.
    browser.press(&ENTER.to_string());
    assert_eq!(open(), 3);
    let file = browser.texts("h4").iter().position(|it| it == "/usr/file-1").unwrap() + 1;
    browser.click(&browser.find("#unfold"));
    assert_eq!(open(), 7);
    let cells = sides(browser, file, "td");
    let plain = |cell: &String| cell.rsplit('\n').next().unwrap().to_owned();
    let cells: Vec<String> = cells.iter().map(plain).collect();
    assert_eq!(cells[..2], ["the same", "the same"]);
    assert_eq!(sides(browser, file, "td mark"), ["srp", "audit-host"]);
    assert_eq!(sides(browser, file, "td.registered"), ["only registered:\nhost srp"]);
    assert_eq!(sides(browser, file, "td.rebuilt"), ["only rebuilt:\nhost audit-host"]);
}

fn what_a_build_wrote_is_text(browser: &Browser) {
    let mut paths = browser.texts("h4");
    paths.extend(browser.texts("main section > div tbody th[scope=row]"));
    for path in [
        "/usr/<img src=x onerror=\"document.title=1\">",
        "/usr/</script><script>document.title='ran'</script>",
        "/usr/photo␛[31m\\u{202e}gpj␊.\u{fffd}",
        "/usr/only & there",
        "/usr/link",
    ] {
        assert!(paths.iter().any(|it| it == path), "{path:?} is not in {paths:?}");
    }
    let text = browser.text(&browser.find("main"));
    assert!(text.contains("links to \"><script>document.title=1</script>, rebuilt to x"), "{text}");
    assert!(text.contains("</td></table><script>document.title='ran'</script>srp"), "{text}");
    assert_eq!(
        browser.evaluate("return document.querySelectorAll('main img, main script').length"),
        0
    );
    assert_eq!(browser.title(), "hostile 1 differs – Audit");
}

fn paper_has_all_of_it(browser: &Browser) {
    let folded = "return document.querySelectorAll('details:not([open])').length";
    browser.evaluate("document.querySelectorAll('details').forEach((it) => { it.open = false })");
    browser.evaluate(&format!(
        "addEventListener('beforeprint', () => {{ window.folded = (() => {{ {folded} }})() }})"
    ));
    browser.print();
    assert_eq!(browser.evaluate("return window.folded"), 0, "on paper");
    assert_eq!(browser.evaluate(folded), 7, "and as before on the screen");
}

/// Were a name ever not escaped, it still wouldn't run.
fn the_policy_forbids_what_might_slip_through(browser: &Browser) {
    let title = browser.title();
    browser.evaluate(
        "const script = document.createElement('script');
         script.textContent = 'document.title = \"ran\"';
         document.body.append(script);
         document.body.insertAdjacentHTML('beforeend',
             '<img src=x onerror=\"document.title = 1\"><p style=\"color: red\">x</p>');
         return new Promise((done) => setTimeout(done, 300));",
    );
    assert_eq!(browser.title(), title);
    let refused = browser.console();
    for directive in ["script-src", "img-src", "style-src"] {
        assert!(refused.iter().any(|line| line.contains(directive)), "{directive}: {refused:#?}");
    }
}

#[test]
fn without_scripts_there_is_the_whole_table() {
    let Some(browser) = Browser::without_scripts("an audit's pages without scripts") else {
        return;
    };
    let (_place, index) = report();
    browser.open(&index);
    assert_eq!(names(&browser).len(), 6);
    assert!(!browser.is_shown(&browser.find("#filter")));
    assert!(browser.all("#derivations button").is_empty(), "scripts run: the test tests nothing");
    browser.click(&browser.all("#derivations a")[1]);
    assert_eq!(browser.title(), "hostile 1 differs – Audit");
    browser.click(&browser.all("summary")[6]);
    assert_eq!(sides(&browser, 7, "ins"), ["audit-host"]);
}

const INNOCENT: &str = r#"return {"": sh("innocent", "echo > $out/usr/innocent")}"#;
const AUDIT: &[&str] = &["audit", "t.x", "--vary", "hostname", "--html"];

fn content(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    place::list(directory).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn a_directory_is_replaced_only_if_it_is_a_report() {
    let place = Place::new(INNOCENT);
    place.realise("t.x");
    let audit = |to: &str| place.srp(&[AUDIT, &[to]].concat());
    audit("report").succeeded();
    let first = content(&place.path("report"));
    let names: Vec<_> = first.iter().map(|(path, _)| path.file_name().unwrap()).collect();
    assert_eq!(names, ["index.html", "srp-audit-report"], "only what differs has a page");
    let page = String::from_utf8(first[0].1.clone()).unwrap();
    let command = "<code>srp audit t.x --vary hostname --html report</code>";
    for part in ["<!DOCTYPE html>", command, "Content-Security-Policy", "default-src 'none'"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    for from_elsewhere in ["<link", "<img", "src=", "@import", "url(", "http://", "https://"] {
        assert!(!page.contains(from_elsewhere), "{from_elsewhere}: {page}");
    }
    audit("report").succeeded();
    let json = place.srp(&[AUDIT, &["report", "--json"]].concat()).succeeded().says(&["pages: "]);
    serde_json::from_str::<Value>(&json.stdout).unwrap();

    place.write("report/notes.txt", "precious");
    audit("report").exited(1).says(&["has more in it than a report of srp", "notes.txt"]);
    assert_eq!(content(&place.path("report")).len(), 3);
    place.write("precious/notes.txt", "precious");
    let run = audit("precious").exited(1);
    assert_eq!(run.stdout, "", "it is said before anything is audited");
    run.says(&["/precious has something in it that is no report", "notes.txt", "isn't there"]);
    assert_eq!(fs::read_to_string(place.path("precious/notes.txt")).unwrap(), "precious");
    audit("precious/notes.txt").exited(1).says(&["precious/notes.txt: Not a directory"]);
    audit("/proc/report").exited(1).says(&["can't write /proc/report: No such file"]);
    let hidden = fs::read_dir(place.path("")).unwrap().map(|it| it.unwrap().file_name());
    let hidden: Vec<_> = hidden.filter(|it| it.to_string_lossy().starts_with(".re")).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}

#[test]
fn a_full_disk_costs_neither_the_earlier_report_nor_the_answer() {
    let place = Place::new(INNOCENT);
    place.realise("t.x");
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    // In a mount namespace of its own.
    let script = "mount -t tmpfs -o size=200k none disk || exit 77
        \"$@\" disk/report || exit 78
        cksum disk/report/*
        dd if=/dev/zero of=disk/other bs=1k 2>/dev/null
        \"$@\" disk/report; code=$?
        cksum disk/report/*
        ls -A disk
        exit $code";
    let mut command = Command::new("unshare");
    let mounting = if is_root() { "-m" } else { "-Urm" };
    place.surround(&mut command).args([mounting, "sh", "-c", script, "sh"]);
    let run = Run::of(command.arg(env!("CARGO_BIN_EXE_srp")).args(AUDIT));
    if run.code == Some(77) || run.stderr.contains("unshare failed") {
        return skipped("an audit's pages on a full disk", "no file system can be mounted here");
    }
    let page = disk.join("report/index.html");
    let said = format!("can't write {}: No space left on device", page.display());
    let run = run.exited(1).says(&[&said]);
    let answers = run.stdout.matches("1 identical, 0 differing\n").count();
    assert_eq!(answers, 2, "the second audit is told all the same:\n{run}");
    let sums: Vec<_> = run.stdout.lines().filter(|line| line.contains(" disk/report/")).collect();
    assert_eq!(sums.len(), 4, "{run}");
    assert_eq!(sums[..2], sums[2..]);
    assert!(run.stdout.ends_with("\nother\nreport\n"), "{run}");
}
