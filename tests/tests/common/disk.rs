//! A disk that can be full.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use llm_proxy_tests::{Product, ProductOptions, binary};

/// Run before the product: `DATA_DIR` is a disk of three megabytes.
const MOUNT: &str = r#"mkdir -p "$DATA_DIR" && mount -t tmpfs -o size=3m,mode=700 disk "$DATA_DIR" || exit"#;
/// Run before the product: a file that may not grow is an error instead of the end, and the log is no file.
const NO_SIGNAL: &str =
    r#"trap "" XFSZ; mkfifo "$DATA_DIR.log" || exit; cat "$DATA_DIR.log" & exec >"$DATA_DIR.log" 2>&1"#;

/// The disk under `DATA_DIR`, which can be filled and freed while the product runs.
#[derive(Clone, Copy)]
pub enum Disk {
    /// A small one, mounted where the product alone sees it, so that it goes with the process. The flags of `unshare` that
    /// get us there.
    Small(&'static [&'static str]),
    /// Where nobody may mount: the product is forbidden to write into files (`RLIMIT_FSIZE`). To it that is a failing
    /// disk; the error is another one.
    Forbidden,
}

impl Disk {
    /// What this machine lets us have.
    pub fn find() -> Self {
        let own: [&[&str]; 2] = [&["--mount"], &["--map-root-user", "--mount"]];
        let mounts = |flags: &&[&str]| {
            let mut mount = Command::new("unshare");
            mount.args(*flags).args(["--", "mount", "-t", "tmpfs", "disk", "/tmp"]).stderr(Stdio::null());
            mount.status().is_ok_and(|status| status.success())
        };
        match own.into_iter().find(mounts) {
            Some(flags) => Self::Small(flags),
            None => {
                eprintln!("nothing can be mounted here: the disk is not full, but files may not be written");
                Self::Forbidden
            }
        }
    }

    /// Has the product run on it by this shell script, in which `"$0" server` is its command line.
    pub fn under(self, options: ProductOptions, script: &str) -> ProductOptions {
        let binary = binary();
        let binary = binary.to_str().unwrap();
        let run = |before| format!("{before}\n{script}");
        match self {
            Self::Small(flags) => {
                let script = run(MOUNT);
                let arguments = [flags, &["--", "/bin/sh", "-c", script.as_str(), binary]].concat();
                options.run_by(PathBuf::from("unshare"), &arguments)
            }
            Self::Forbidden => options.run_by(PathBuf::from("/bin/sh"), &["-c", &run(NO_SIGNAL), binary]),
        }
    }

    /// Leaves no room for a single octet.
    pub fn fill(self, product: &Product) {
        match self {
            Self::Small(_) => {
                let mut filler = File::create(inside(product, "filler")).unwrap();
                let error = loop {
                    if let Err(error) = filler.write_all(&[b'x'; 4096]) {
                        break error;
                    }
                };
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
            }
            Self::Forbidden => limit_files(product, "0:"),
        }
    }

    /// Makes room again.
    pub fn free(self, product: &Product) {
        match self {
            Self::Small(_) => fs::remove_file(inside(product, "filler")).unwrap(),
            Self::Forbidden => limit_files(product, "unlimited:"),
        }
    }
}

/// A file in `DATA_DIR`, as the product sees it.
pub fn inside(product: &Product, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", product.pid(), product.data_dir().join(name).display()))
}

fn limit_files(product: &Product, limit: &str) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args([format!("--pid={}", product.pid()), format!("--fsize={limit}")]);
    assert!(prlimit.status().unwrap().success(), "{prlimit:?}");
}
