//! What TLS to one provider is made with, beside the system's certificate authorities: authorities of its own, and a
//! certificate of ours.
//!
//! Read and judged at the start. Pingora would find a fault with the first request, and by a panic.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::parse_x509_certificate;

use crate::settings::ApiSettings;

/// For one API.
#[derive(Default)]
pub struct Trust {
    /// The only authorities that its provider's certificate may come from. `None`: the system's.
    pub authorities: Option<Arc<CaType>>,
    /// What we show when we are asked who we are.
    pub identity: Option<Arc<CertKey>>,
}

impl Trust {
    /// Reads the files that an API names.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn read(api: &ApiSettings) -> Result<Self> {
        let name = |key: &str| format!("apis.{}.{key}", api.name);
        let authorities = match &api.ca_file {
            Some(file) => Some(authorities(file).with_context(|| name("ca_file"))?),
            None => None,
        };
        let identity = match (&api.client_cert_file, &api.client_key_file) {
            (Some(certificate), Some(key)) => {
                Some(identity(certificate, key).with_context(|| name("client_cert_file"))?)
            }
            _ => None,
        };
        Ok(Self { authorities, identity })
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let shown = file.display();
    let found: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| anyhow!("{shown}: it cannot be read as PEM: {error}"))?;
    if found.is_empty() {
        bail!("{shown}: it has no certificate, expected one or more between BEGIN CERTIFICATE and END CERTIFICATE");
    }
    Ok(found)
}

/// What Pingora makes of a certificate. It expects one that this parser takes.
fn parsed(certificate: &CertificateDer<'_>) -> Result<WrappedX509> {
    parse_x509_certificate(certificate).map_err(|_| anyhow!("a certificate in it is malformed"))?;
    Ok(WrappedX509::new(certificate.to_vec(), parse_x509))
}

fn authorities(file: &Path) -> Result<Arc<CaType>> {
    let certificates = certificates(file)?;
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store
            .add(certificate.clone())
            .map_err(|error| anyhow!("{}: a certificate in it is no authority's: {error}", file.display()))?;
    }
    certificates
        .iter()
        .map(parsed)
        .collect::<Result<Vec<_>>>()
        .map(Arc::from)
        .with_context(|| file.display().to_string())
}

fn identity(certificate_file: &Path, key_file: &Path) -> Result<Arc<CertKey>> {
    let certificates = certificates(certificate_file)?;
    let shown = key_file.display();
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| anyhow!("{shown}: it has no private key that can be read: {error}"))?;
    CertifiedKey::from_der(certificates.clone(), key.clone_key(), &default_provider())
        .map_err(|error| anyhow!("{shown}: it is not the key of {}: {error}", certificate_file.display()))?;
    for certificate in &certificates {
        parsed(certificate).with_context(|| certificate_file.display().to_string())?;
    }
    let certificates = certificates.iter().map(|certificate| certificate.to_vec()).collect();
    Ok(Arc::new(CertKey::new(certificates, key.secret_der().to_vec())))
}
