//! What a network of several machines needs besides an origin: TLS in front of it, and the page of a portal in its place.

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// The certificate, which is its own authority.
pub const CERTIFICATE: &str = "cert.pem";
/// Its key.
const KEY: &str = "key.pem";

/// Writes a certificate for these names, and its key, into a directory.
///
/// # Errors
/// When none can be made or written.
pub fn write_certificate(directory: &Path, names: &[&str]) -> Result<()> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).context("cannot make a certificate")?;
    std::fs::write(directory.join(CERTIFICATE), made.cert.pem()).context("cannot write a certificate")?;
    std::fs::write(directory.join(KEY), made.signing_key.serialize_pem()).context("cannot write a key")
}

/// Speaks TLS for an origin that does not.
pub struct Front {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Front {
    /// Listens with the certificate in this directory.
    ///
    /// # Errors
    /// When the files cannot be used or the address is taken.
    pub async fn open(directory: &Path, listen: SocketAddr) -> Result<Self> {
        let certificate =
            CertificateDer::from_pem_file(directory.join(CERTIFICATE)).context("no certificate")?;
        let key = PrivateKeyDer::from_pem_file(directory.join(KEY)).context("no key")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("cannot configure TLS")?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .context("the certificate cannot be used")?;
        let listener = TcpListener::bind(listen).await.context("the origin's address is taken")?;
        Ok(Self { listener, acceptor: Arc::new(config).into() })
    }

    /// Hands every connection on to the origin; never ends by itself.
    ///
    /// # Errors
    /// When connections can no longer be taken.
    pub async fn serve(self, origin: SocketAddr) -> Result<()> {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => {
                    let (stream, _) = accepted.context("connections can no longer be taken")?;
                    let acceptor = self.acceptor.clone();
                    connections.spawn(async move {
                        let mut outside = acceptor.accept(stream).await?;
                        let mut inside = TcpStream::connect(origin).await?;
                        copy_bidirectional(&mut outside, &mut inside).await
                    });
                }
                // How a connection ended is its two ends' business.
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// Listens at each of these addresses.
///
/// # Errors
/// When one is taken.
pub async fn listen_at(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>> {
    let mut listening = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await;
        listening.push(listener.with_context(|| format!("{address} is taken"))?);
    }
    Ok(listening)
}

/// Sends everybody to a sign-in page, whatever was asked, in plain HTTP also where TLS is expected; never ends.
///
/// # Errors
/// When a task died.
pub async fn sign_in_page(listening: Vec<TcpListener>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for listener in listening {
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let answer = "HTTP/1.1 302 Found\r\nLocation: http://login.cafe.example/welcome\r\n\
                                  Content-Length: 0\r\nConnection: close\r\n\r\n";
                    let mut asked = [0; 4096];
                    // Who asked hangs up or is answered; both are the end of it.
                    let _ = stream.read(&mut asked).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
    }
    tasks.join_next().await.context("nothing to listen at")?.context("a listener died")
}
