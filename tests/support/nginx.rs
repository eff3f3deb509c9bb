//! A real web server for the tests: nginx, serving a directory, and taking PUT and DELETE.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::host::skipped;
use super::processes::eventually;

/// A running nginx; it ends with the value.
pub(crate) struct Nginx {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Nginx {
    /// Serves `root`, if nginx is installed; else says loudly what is not tested.
    pub(crate) fn serving(root: &Path, what: &str) -> Option<Nginx> {
        Nginx::start(root, what, "")
    }

    /// As [`Nginx::serving`], and directories are listed in JSON.
    pub(crate) fn listing(root: &Path, what: &str) -> Option<Nginx> {
        Nginx::start(root, what, "autoindex on; autoindex_format json;")
    }

    /// As [`Nginx::serving`], at a megabyte a second.
    pub(crate) fn slow(root: &Path, what: &str) -> Option<Nginx> {
        Nginx::start(root, what, "limit_rate 1m;")
    }

    /// Ends it in the middle of whatever it is doing.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
    }

    fn start(root: &Path, what: &str, more: &str) -> Option<Nginx> {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
        let Some(program) = program.iter().find(|path| Path::new(path).is_file()) else {
            skipped(what, "nginx is not installed (Debian: nginx-light)");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = directory.path().display();
        let config = format!(
            // One process: who kills it has killed it.
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
             events {{ worker_connections 64; }}
             http {{ access_log off; client_max_body_size 0; client_body_temp_path {at}/body;
               proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u;
               scgi_temp_path {at}/s;
               server {{ listen 127.0.0.1:{port}; root {};
                 location / {{ dav_methods PUT DELETE; create_full_put_path on; {more} }} }} }}\n",
            root.display()
        );
        let file = directory.path().join("nginx.conf");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(program);
        command.arg("-p").arg(directory.path()).arg("-c").arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        assert!(
            eventually(|| TcpStream::connect(("127.0.0.1", port)).is_ok()),
            "it never listened"
        );
        Some(Nginx { child, port, _directory: directory })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let id = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
