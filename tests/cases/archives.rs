//! Archives of unusual forms, as sources and in outputs: what is taken, and by which name the rest is
//! refused.

use std::fs;

use crate::support::server::Server;
use crate::support::{Place, Run};

/// A fetch of these bytes.
fn source(server: &Server, more: &str) -> String {
    format!(
        "fetch(name = \"source\", sha256 = \"{}\", urls = [\"{}\"], {more})",
        server.sha256(),
        server.url()
    )
}

macro_rules! seeds {
    ($($path:literal),*) => {
        [$(($path, &include_bytes!(concat!("../fuzz/seeds/", $path))[..])),*]
    };
}

#[test]
fn sources_that_other_programs_unpack_are_unpacked() {
    let taken = seeds![
        "tar/pax-newline.tar",
        "tar/pax-newline-name.tar",
        "tar/pax-newline-link.tar",
        "tar/uid-blank.tar",
        "tar/uid-nul.tar",
        "tar/mode-nul.tar",
        "tar/star.tar",
        "tar/signed-checksum.tar",
        "unpack/gz-zeros.tar.gz",
        "unpack/bz-zeros.tar.bz2",
        "unpack/alone.tar.lzma",
        "unpack/lz.tar.lz",
        "zip/zip.zip",
        "zip/lzma.zip",
        "zip/bzip2.zip"
    ];
    let servers: Vec<Server> = taken.iter().map(|(_, bytes)| Server::of(bytes.to_vec())).collect();
    let components = taken.iter().zip(&servers).enumerate().map(|(at, ((path, _), server))| {
        let unpack = if path.ends_with(".zip") { "zip" } else { "tar" };
        format!("\"c{at}\": {}", source(server, &format!("unpack = \"{unpack}\", strip = 1")))
    });
    let components: Vec<String> = components.collect();
    let place = Place::new(&format!("return {{{}}}", components.join(", ")));
    let attributes: Vec<String> = (0..taken.len()).map(|at| format!("t.x.c{at}")).collect();
    let mut arguments = vec!["realise"];
    arguments.extend(attributes.iter().map(String::as_str));
    let run = place.srp(&arguments).succeeded();
    for ((path, _), tree) in taken.iter().zip(run.stdout.lines()) {
        assert!(fs::read_dir(tree).unwrap().next().is_some(), "{path}: {tree} is empty");
    }
}

fn refused(bytes: &[u8], more: &str) -> Run {
    let server = Server::of(bytes.to_vec());
    let place = Place::new(&format!("return {{\"\": {}}}", source(&server, more)));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    place.assert_tidy();
    run
}

#[test]
fn sources_that_are_not_read_are_called_by_their_names() {
    let [(_, compress), (_, garbage), (_, zip), (_, flat)] = seeds![
        "unpack/compress.tar.Z",
        "unpack/xz-garbage.tar.xz",
        "zip/zip.zip",
        "tar/no-top.tar"
    ];
    refused(compress, "unpack = \"tar\"").says(&["compress (.Z)", "fetch it without `unpack`"]);
    refused(garbage, "unpack = \"tar\"").says(&["something else follows the xz data"]);
    refused(zip, "unpack = \"tar\"").says(&["it is a zip archive", "unpack = \"zip\""]);
    refused(flat, "unpack = \"zip\"").says(&["it is a tar archive", "unpack = \"tar\""]);
    refused(flat, "unpack = \"tar\", strip = 1").says(&["strip = 1 leaves nothing"]);
}

#[test]
fn files_that_can_not_be_searched_to_their_end_can_be_left_out_of_the_search() {
    let nest = "echo hi > /tmp/a; i=0; while [ $i -lt 14 ]; do gzip -c /tmp/a > /tmp/b; mv /tmp/b /tmp/a; \
                i=$((i+1)); done; mkdir $out/usr/share; cp /tmp/a $out/usr/share/nested.gz";
    let define = |script: &str, more: &str| {
        format!("return {{\"\": sh(\"nested\", r\"\"\"{script}\"\"\"{more})}}")
    };
    let place = Place::new(&define(nest, ""));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&[
        "usr/share/nested.gz nests archives more than 12 deep",
        "allow_sandbox_paths = {\"usr/share/nested.gz\": ",
    ]);
    let allowed = ", allow_sandbox_paths = {\"usr/share/nested.gz\": \"a test\"}";
    place.define(&define(nest, allowed));
    place.realise("t.x");
    // Of that file only.
    let more = format!("{nest}; echo /srp/build > $out/usr/share/note");
    place.define(&define(&more, allowed));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&["usr/share/note contains /srp/build"]);
}

#[test]
fn needs_of_one_file_are_ignored_and_those_of_others_are_not() {
    let script = "mkdir $out/usr/bin $out/usr/share; for i in bin/x-config bin/tool share/test; do \
                  echo '#!/nowhere/sh' > $out/usr/$i; chmod +x $out/usr/$i; done";
    let define =
        |more: &str| format!("return {{\"\": sh(\"scripts\", r\"\"\"{script}\"\"\"{more})}}");
    let place = Place::new(&define(""));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&[
        "usr/share/test needs /nowhere/sh",
        "usr/bin/x-config is run by builds of other packages only",
        "ignore_references = {\"usr/bin/x-config\": {\"/nowhere/sh\": ",
    ]);
    let ignored = |files: &[&str]| {
        let files: Vec<String> = files
            .iter()
            .map(|file| format!("\"{file}\": {{\"/nowhere/*\": \"a test\"}}"))
            .collect();
        define(&format!(", ignore_references = {{{}}}", files.join(", ")))
    };
    place.define(&ignored(&["usr/share/*", "/usr/bin/x-config"]));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    let run = run.says(&["usr/bin/tool needs /nowhere/sh"]);
    assert!(!run.stderr.contains("usr/share/test needs"), "{run}");
    place.define(&ignored(&["usr/share/*", "usr/bin/x-config", "usr/bin/tool"]));
    place.realise("t.x");
}
