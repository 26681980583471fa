//! Where the management token comes from.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use llm_proxy_core::secret::Secret;

/// The file in the data directory that the first start of the server writes.
const FILE: &str = "management_token";

/// What holds where the command line says nothing: the settings `MANAGEMENT_TOKEN`, `DATA_DIR`, `ADMIN_LISTEN_ADDR`.
pub struct Defaults {
    /// The credential, if a setting holds it.
    pub management_token: Option<Secret>,
    /// The server's data directory.
    pub data_dir: PathBuf,
    /// Where the admin plane listens, `host:port`.
    pub admin_listen_addr: String,
}

/// The credential and where it was found, for the message when the server refuses it.
pub(super) struct Credential {
    pub(super) token: Secret,
    pub(super) origin: String,
}

pub(super) fn find(defaults: &Defaults, data_dir: Option<&Path>) -> anyhow::Result<Credential> {
    if let Some(token) = &defaults.management_token {
        return Ok(Credential { token: token.clone(), origin: "MANAGEMENT_TOKEN".to_owned() });
    }
    let path = data_dir.unwrap_or(&defaults.data_dir).join(FILE);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "no management token: set MANAGEMENT_TOKEN, or name the server's data directory with --data-dir; tried {}",
            path.display()
        )
    })?;
    let text = text.trim();
    if text.is_empty() {
        bail!("{} is empty; delete it and restart the server to have a new one made", path.display());
    }
    Ok(Credential { token: Secret::new(text), origin: path.display().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(token: Option<&str>, data_dir: &Path) -> Defaults {
        Defaults {
            management_token: token.map(Secret::new),
            data_dir: data_dir.to_owned(),
            admin_listen_addr: "127.0.0.1:8081".to_owned(),
        }
    }

    #[test]
    fn the_setting_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "from-file\n").unwrap();
        let found = |token| find(&defaults(token, folder.path()), None).map(|found| found.token.expose().to_owned());
        assert_eq!(found(None).unwrap(), "from-file");
        assert_eq!(found(Some("from-setting")).unwrap(), "from-setting");
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        let error = find(&defaults(None, folder.path()), Some(&elsewhere)).err().unwrap();
        assert!(error.to_string().contains("elsewhere/management_token"), "{error}");
    }
}
