//! The URL of a server, and how it is shown without its secrets.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};

use rustls::ClientConfig;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use crate::{Error, ErrorKind, Result};

/// How TLS is used, in the words of libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsMode {
    Disable,
    /// If the server offers it. The certificate is not verified.
    Prefer,
    /// Always. Without a file of root certificates, the certificate is not verified.
    Require,
    /// Always, with a certificate of a known root.
    VerifyCa,
    /// As before, and the certificate is that of the host.
    VerifyFull,
}

/// A server and a database, and how to reach them.
pub(super) struct Target {
    pub(super) config: Config,
    pub(super) tls: TlsMode,
    /// A file of root certificates, in place of the system's.
    pub(super) roots: Option<PathBuf>,
    /// Made of the two at the first connection: the roots of the system are many files.
    pub(super) tls_config: OnceLock<Arc<ClientConfig>>,
    /// The parameter `schema`, which is this crate's own.
    pub(super) schema: Option<String>,
    /// For people: `host:port/database`.
    pub(super) address: String,
    /// The number of the host that a connection was made to last.
    pub(super) last_host: AtomicUsize,
}

/// One of the hosts of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// For TLS it is the name that the certificate has to be of.
    pub(super) host: Host,
    /// `None`: the name has to be resolved.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

/// Shows neither the user nor the password.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Whether a text is the URL of a PostgreSQL server.
#[must_use]
pub(super) fn is_url(text: &str) -> bool {
    ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme))
}

impl Target {
    /// Parses a URL. No error contains any part of it: a password with an unescaped `@` or `/` looks like a host.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let Some((_, rest)) = url.split_once("://").filter(|_| is_url(url)) else {
            return Err(invalid("it begins with postgres:// or postgresql://"));
        };
        if rest.contains("%00") {
            return Err(invalid("it has a character NUL"));
        }
        if rest.matches('@').count() > 1 || rest.contains(['#', ' ']) {
            return Err(invalid("special characters in it, such as @ and /, are percent-encoded"));
        }
        let authority = rest.find(['/', '?']).map_or(rest, |end| &rest[..end]);
        if rest.contains('@') && !authority.contains('@') {
            return Err(invalid("special characters in it, such as @ and /, are percent-encoded"));
        }
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut tls, mut roots, mut schema, mut others) = (None, None, None, Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) =
                parameter.split_once('=').ok_or_else(|| invalid("a parameter is a name, =, and a value"))?;
            let value = || decode(value).ok_or_else(|| invalid("a parameter is not valid UTF-8"));
            match name {
                "sslmode" => tls = Some(tls_mode(&value()?)?),
                "sslrootcert" if value()? == "system" => {}
                "sslrootcert" => roots = Some(PathBuf::from(value()?)),
                "schema" => schema = Some(value()?),
                "password" | "user" | "dbname" | "host" | "port" | "hostaddr" | "options"
                | "application_name" | "connect_timeout" | "channel_binding" => others.push(parameter),
                _ => {
                    return Err(invalid(
                        "it has a parameter that is not supported: see PostgresRecordStore::connect",
                    ));
                }
            }
        }
        let plain = format!("{base}?{}", others.join("&"));
        let mut config: Config =
            plain.parse().map_err(|_| invalid("the form is postgres://user:password@host:port/database"))?;
        let addresses = config.get_hostaddrs().to_vec();
        if config.get_hosts().is_empty() {
            let names = addresses.iter().map(IpAddr::to_string).collect();
            let names = if addresses.is_empty() { vec!["localhost".to_owned()] } else { names };
            for name in names {
                config.host(name);
            }
        } else if !addresses.is_empty() && addresses.len() != config.get_hosts().len() {
            return Err(invalid("hostaddr has one address for each host"));
        }
        if config.get_password().is_none()
            && let Ok(password) = std::env::var("PGPASSWORD")
        {
            config.password(password);
        }
        if config.get_application_name().is_none() {
            config.application_name("record-store");
        }
        let tls = tls.unwrap_or(TlsMode::Prefer);
        config.ssl_mode(match tls {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
        });
        let address = address(&config);
        let last_host = AtomicUsize::new(0);
        Ok(Self { config, tls, roots, tls_config: OnceLock::new(), schema, address, last_host })
    }

    pub(super) fn hosts(&self) -> Vec<Endpoint> {
        hosts(&self.config)
    }
}

fn hosts(config: &Config) -> Vec<Endpoint> {
    let (addresses, ports) = (config.get_hostaddrs(), config.get_ports());
    let port = |number| *ports.get(number).or(ports.first()).unwrap_or(&5432);
    let hosts = config.get_hosts().iter().enumerate();
    let endpoint = |(number, host): (usize, &Host)| Endpoint {
        host: host.clone(),
        address: addresses.get(number).copied(),
        port: port(number),
    };
    hosts.map(endpoint).collect()
}

fn address(config: &Config) -> String {
    let hosts = hosts(config).into_iter().map(|Endpoint { host, port, .. }| match host {
        Host::Tcp(host) => format!("{host}:{port}"),
        Host::Unix(directory) => format!("{}:{port}", directory.display()),
    });
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("{}/{database}", hosts.collect::<Vec<_>>().join(","))
}

fn tls_mode(text: &str) -> Result<TlsMode> {
    Ok(match text {
        "disable" => TlsMode::Disable,
        "allow" | "prefer" => TlsMode::Prefer,
        "require" => TlsMode::Require,
        "verify-ca" => TlsMode::VerifyCa,
        "verify-full" => TlsMode::VerifyFull,
        _ => {
            return Err(invalid("sslmode is disable, allow, prefer, require, verify-ca or verify-full"));
        }
    })
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn invalid(detail: &'static str) -> Error {
    Error::new(ErrorKind::InvalidUrl, "open").with_detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_has_no_secret() {
        let target =
            Target::parse("postgres://alice:s3cr3t@db.example:6432/app?sslmode=verify-full").unwrap();
        assert_eq!(target.address, "db.example:6432/app");
        assert_eq!(target.tls, TlsMode::VerifyFull);
        let debug = format!("{target:?}");
        assert!(!debug.contains("s3cr3t") && !debug.contains("alice"), "{debug}");
        let target = Target::parse("postgresql://db?password=s3cr3t&schema=a%20b").unwrap();
        assert_eq!(target.schema.as_deref(), Some("a b"));
        assert!(!format!("{target:?}").contains("s3cr3t"));
    }

    #[test]
    fn no_error_contains_any_part_of_the_url() {
        for url in [
            "postgres://u:s3cr3t@s3cr3t@host/db",
            "postgres://u:s3/cr3t@host/db",
            "postgres://u:s3?cr3t@host/db",
            "postgres://u:s3#cr3t@host/db",
            "postgres://u:s3cr3t@host:s3cr3t/db",
            "postgres://u:s3cr3t@host/db?s3cr3t",
            "postgres://u:s3cr3t@host/db?s3cr3t=1",
            "postgres://u:s3cr3t@host/db?sslmode=s3cr3t",
            "postgres://u:s3%ffcr3t@[host/db",
            "postgres://u:s3cr3t%00@host/db",
            "mysql://u:s3cr3t@host/db",
        ] {
            let error = Target::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            let text = format!("{error} {error:?} {:?}", std::error::Error::source(&error));
            assert!(!text.contains("cr3t") && !text.contains("s3"), "{url}: {text}");
        }
    }

    #[test]
    fn each_host_has_its_port() {
        let target = Target::parse("postgres://u@one,two:7000/db").unwrap();
        assert_eq!(target.address, "one:5432,two:7000/db");
        assert_eq!(Target::parse("postgres://u@/db?host=/run/pg").unwrap().address, "/run/pg:5432/db");
    }

    #[test]
    fn an_address_is_used_in_the_place_of_a_name() {
        let hosts = |url: &str| Target::parse(url).map(|target| target.hosts());
        let address = Some(IpAddr::from([10, 0, 0, 7]));
        let expected = Endpoint { host: Host::Tcp("db.example".into()), address, port: 5432 };
        assert_eq!(hosts("postgres://u@db.example/db?hostaddr=10.0.0.7").unwrap(), [expected]);
        let expected = Endpoint { host: Host::Tcp("10.0.0.7".into()), address, port: 7000 };
        assert_eq!(hosts("postgres://u@/db?hostaddr=10.0.0.7&port=7000").unwrap(), [expected]);
        assert!(hosts("postgres://u@one,two/db?hostaddr=10.0.0.7").is_err());
    }
}
