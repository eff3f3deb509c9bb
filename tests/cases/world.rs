//! What a build finds around it: names, times, terminals, variables.

use crate::support::{Place, project};

#[test]
fn its_own_name_and_localhost_resolve() {
    let place = Place::new(
        r#"return {"": sh("names", """
            test "$(hostname)" = srp
            test "$(hostname -f)" = srp
            test "$(hostname -i)" = 127.0.0.1
            grep -qx 'hosts: files' /etc/nsswitch.conf
            for address in 127.0.0.1 ::1; do
                grep -qx "$address srp" /etc/hosts
                grep -qx "$address localhost" /etc/hosts
            done
            echo > $out/usr/file
        """)}"#,
    );
    place.realise("t.x");
}

#[test]
fn inputs_have_a_time_that_zip_archives_can_hold() {
    let place = Place::new(
        r#"return {"": sh("times", """
            # Zip archives hold local times: also twelve hours behind it must be 1980.
            for path in / /usr /usr/bin/busybox /usr/bin/ls /etc /etc/passwd /srp /srp/out; do
                test $(TZ=XXX12 stat -c %y $path | cut -d - -f 1) = 1980
                test $(stat -c %Y $path) = $SOURCE_DATE_EPOCH
            done
            echo > $out/usr/file
        """)}"#,
    );
    place.realise("t.x");
}

#[test]
fn a_build_has_terminals_and_only_its_own() {
    let place = Place::new(
        r#"return {"": sh("terminals", """
            test "$(ls /dev/pts)" = ptmx
            exec 5<>/dev/ptmx
            test -c /dev/pts/0
            ! test -t 0
            echo > $out/usr/file
        """)}"#,
    );
    place.realise("t.x");
}

#[test]
fn foreign_owners_are_refused_as_to_any_user() {
    let place = Place::new(
        r#"return {"": sh("owners", """
            for change in 'chown 0' 'chown :0' 'chown 5:5' 'chown -h 0' 'chgrp 0'; do
                : > /tmp/file
                ! $change /tmp/file 2> /tmp/errors
                grep -q 'Operation not permitted' /tmp/errors
            done
            chown 1000:1000 /tmp/file
            echo > $out/usr/file
        """)}"#,
    );
    place.realise("t.x");
}

#[test]
fn only_gnu_make_and_cargo_are_told_of_the_job_server() {
    let place = Place::new(
        r#"return {"": sh("variables", """
            test -z "${MAKEFLAGS+set}"
            test "$GNUMAKEFLAGS" = "-j$SRP_CORES --jobserver-auth=fifo:/srp/jobserver"
            test "$CARGO_MAKEFLAGS" = "$GNUMAKEFLAGS"
            test -p /srp/jobserver
            echo > $out/usr/file
        """)}"#,
    );
    place.realise("t.x");
}

#[test]
fn standard_streams_can_be_opened_anew() {
    let place = Place::new(
        r#"return {"": sh("streams", """
            echo by name > /dev/stderr
            echo by number >> /proc/self/fd/1
            echo > $out/usr/file
        """)}"#,
    );
    place.realise("t.x");
}

#[test]
fn a_make_that_is_not_gnus_sees_no_job_server() {
    // Debian's bmake reads MAKEFLAGS as its own options, and stops at `--jobserver-auth`.
    let main = r#"
load("//lib/shell.star", "shell")
load("//stages/seed.star", "seed_sets")
load("//targets.star", "machines")

targets = {"x": "x"}

def _components(target, build):
    triple = machines[build].triple
    def made(name, flags):
        return derivation(
            name = name, version = "1", build = triple, host = triple, tools = [seed_sets(build).bmake], env = flags,
            **shell("""
                printf 'all:\\n\\t@env > variables\\n\\t@echo made > made\\n' > Makefile
                bmake
                bmake -j 2
                if grep -E '^(MAKEFLAGS|MFLAGS|\\.MAKEFLAGS)=.*jobserver' variables; then exit 1; fi
                mkdir -p $out/usr
                cp made $out/usr/
            """)
        )
    return {"": made("bmake", {}), "old": made("old", {"MAKEFLAGS": "-j2 --jobserver-auth=fifo:/srp/jobserver"})}

stages = {"t": _components}
"#;
    let place = project::place(main, &["base", "bmake"]);
    assert_eq!(std::fs::read_to_string(place.realise("t.x").join("usr/made")).unwrap(), "made\n");
    // That this make would mind: as it was when MAKEFLAGS was set.
    place.srp(&["realise", "t.x.old"]).exited(3);
}
