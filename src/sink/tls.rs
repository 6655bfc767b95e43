//! Certificates: whether ours are of use, and why a bus's is not believed.
//!
//! librdkafka says of each certificate that it does not believe only that it could not be verified. So we shake hands
//! once ourselves, and say whether it has expired, is for another name, or is of an authority that is not known.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use async_nats::rustls::pki_types::pem::PemObject as _;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use async_nats::rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Error as TlsError,
    RootCertStore,
};

use super::access::{FileError, NamedFile, Tls, TlsIdentity};

/// How long each step of a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// With TLS 1.3 a server refuses our certificate after the handshake; it does so at once or not at all.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Says what is wrong with the files of a TLS setting.
///
/// # Errors
/// For the first that cannot be read or is of no use.
pub(super) fn check(tls: &Tls) -> Result<(), FileError> {
    client_config(tls).map(drop)
}

/// Why TLS to a server fails, where that is a matter of certificates: one line, with what to do. Blocks for some
/// seconds. `None` where the handshake goes through, or the server is not there.
pub(super) fn why(tls: &Tls, server: &str) -> Option<String> {
    let error = shake_hands(tls, server).err()?;
    find(error.as_ref()).map(|error| said(error, server, tls.identity.is_some()))
}

/// Why TLS to a server failed, by the error of whoever tried.
pub(super) fn explain(
    error: &(dyn Error + 'static),
    server: &str,
    tls: Option<&Tls>,
) -> Option<String> {
    let shows_identity = tls.is_some_and(|tls| tls.identity.is_some());
    find(error).map(|error| said(error, server, shows_identity))
}

fn certificates(file: &NamedFile) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let bytes = file.read()?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        Ok(_) | Err(_) => Err(file.content("holds no certificate in PEM")),
    }
}

fn client_config(tls: &Tls) -> Result<ClientConfig, FileError> {
    let mut roots = RootCertStore::empty();
    match &tls.ca {
        Some(file) => {
            for certificate in certificates(file)? {
                roots
                    .add(certificate)
                    .map_err(|error| file.content(format!("holds no authority: {error}")))?;
            }
        }
        None => {
            // What the system's store holds besides is none of ours.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let Some(TlsIdentity {
        cert,
        key,
        key_password,
    }) = &tls.identity
    else {
        return Ok(builder.with_no_client_auth());
    };
    let certs = certificates(cert)?;
    let bytes = key.read()?;
    if let Some(password) = key_password {
        // Only OpenSSL decrypts it; what can be said before is that it is there.
        password.read()?;
        return Ok(builder.with_no_client_auth());
    }
    let private = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        key.content(
            "holds no key in PEM, or an encrypted one: for that `tls.key_password_file` is needed",
        )
    })?;
    builder
        .with_client_auth_cert(certs, private)
        .map_err(|error| key.content(format!("does not fit `{}`: {error}", cert.path.display())))
}

fn shake_hands(tls: &Tls, server: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
    let config = client_config(tls)?;
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned())?;
    let address = server
        .to_socket_addrs()?
        .next()
        .ok_or("it has no address")?;
    let mut stream = TcpStream::connect_timeout(&address, HANDSHAKE_TIMEOUT)?;
    stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
    let mut connection = ClientConnection::new(Arc::new(config), name)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    stream.set_read_timeout(Some(REFUSAL_TIMEOUT))?;
    stream.flush()?;
    let mut tls_stream = async_nats::rustls::Stream::new(&mut connection, &mut stream);
    match tls_stream.read(&mut [0; 1]) {
        Err(error) if find(&error).is_some() => Err(error.into()),
        // It waits for us, or has closed: both are no matter of certificates.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// TLS's own error, among an error and its causes.
fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<TlsError>() {
            return Some(found);
        }
        // An I/O error's source is that of its inner error, not that error itself.
        if let Some(inner) = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
        {
            return find(inner);
        }
        next = error.source();
    }
    None
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the errors are rustls's and not exhaustive"
)]
fn said(error: &TlsError, server: &str, shows_identity: bool) -> String {
    match error {
        TlsError::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!(
                "the certificate of {server} has expired: renew it there, or compare the clocks"
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("the certificate of {server} is not valid yet: compare the clocks")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!(
                    "the certificate of {server} is for another name: write a name in `bus` that it is for, or have \
                     it renewed for this one"
                )
            }
            CertificateError::UnknownIssuer => format!(
                "the certificate of {server} is of an authority that is not trusted: name that one's certificate \
                 with `tls.ca_file`"
            ),
            other => format!("the certificate of {server} is not valid: {other}"),
        },
        // Java says `BadCertificate` of one that was not sent at all.
        TlsError::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::HandshakeFailure,
        ) if !shows_identity => format!(
            "{server} asks for a client certificate: name one with `tls.cert_file` and `tls.key_file`"
        ),
        TlsError::AlertReceived(alert) => format!(
            "{server} refuses our TLS ({alert:?}): look at `tls.cert_file`, and whether that server trusts its authority"
        ),
        TlsError::InvalidMessage(_) => format!(
            "{server} does not answer in TLS: name a port of it that does, or leave `tls.enabled` off"
        ),
        other => format!("TLS to {server} fails: {other}"),
    }
}
