//! What in a request names a tenant beside the credential: host name and header.
//!
//! A hint never selects a tenant. It is compared with the credential's own and can only make a request fail,
//! so no other tenant is looked up here, and an unknown, a suspended and somebody else's name cannot differ.
//!
//! **Invariant:** a forwarded host is read only when the peer is a trusted proxy.

use std::net::IpAddr;

use ipnet::IpNet;
use uuid::Uuid;

use super::directory::TenantRecord;
use super::settings::AuthSettings;
use crate::domain::ids::{InvalidName, Slug, TenantId};

/// The parts of a request that may name a tenant, as they came, with every repetition.
#[derive(Debug, Clone, Default)]
pub struct RequestHints<'a> {
    /// Every `Host` header and the authority of the request's target.
    pub host: Vec<&'a [u8]>,
    /// Every `X-Forwarded-Host` header.
    pub forwarded_host: Vec<&'a [u8]>,
    /// Every `X-Tenant-ID` header.
    pub x_tenant_id: Vec<&'a [u8]>,
    /// Who is connected; absent on a Unix socket.
    pub peer: Option<IpAddr>,
}

/// A tenant as named in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantHint {
    /// By its id.
    Id(TenantId),
    /// By its slug.
    Slug(Slug),
}

/// A hint cannot be read, or two contradict each other. The text says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedHint(pub &'static str);

impl TenantHint {
    /// Reads a tenant's id or slug, in either case of letters.
    ///
    /// # Errors
    /// [`MalformedHint`] for anything else, an empty text and a list among them.
    pub fn parse(raw: &[u8]) -> Result<Self, MalformedHint> {
        let malformed = MalformedHint("neither the id nor the slug of a tenant");
        let text = std::str::from_utf8(raw).map_err(|_| malformed)?.trim_matches([' ', '\t']);
        let text = text.to_ascii_lowercase();
        // 36 characters is the hyphenated form; the others of a UUID could be somebody's slug.
        match Uuid::try_parse(&text) {
            Ok(id) if text.len() == 36 => Ok(Self::Id(TenantId(id))),
            _ => Slug::parse(&text).map(Self::Slug).map_err(|_| malformed),
        }
    }

    /// Whether this is that tenant.
    #[must_use]
    pub fn names(&self, tenant: &TenantRecord) -> bool {
        match self {
            Self::Id(id) => *id == tenant.tenant,
            Self::Slug(slug) => slug.as_str() == &*tenant.slug,
        }
    }
}

impl std::fmt::Display for TenantHint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Slug(slug) => f.write_str(slug.as_str()),
        }
    }
}

/// A host name with the slug's label in it: `{slug}.example.com`, `app.{slug}.example.com`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    before: String,
    after: String,
}

impl HostPattern {
    const SLUG: &'static str = "{slug}";

    /// Reads a pattern: one label is `{slug}`, and a domain follows it.
    ///
    /// # Errors
    /// [`InvalidName`] with the rule that is broken.
    pub fn parse(raw: &str) -> Result<Self, InvalidName> {
        let rule =
            InvalidName("a host name with one label {slug} and a domain behind it, as {slug}.example.com");
        let (before, after) = raw.split_once(Self::SLUG).ok_or(rule.clone())?;
        let label = |label: &str| Slug::parse(label).is_ok();
        let starts =
            before.is_empty() || before.strip_suffix('.').is_some_and(|labels| labels.split('.').all(label));
        let ends = after.strip_prefix('.').is_some_and(|labels| labels.split('.').all(label));
        if starts && ends {
            Ok(Self { before: before.to_owned(), after: after.to_owned() })
        } else {
            Err(rule)
        }
    }

    /// The label in the slug's place; `None` when the host is not of this pattern.
    fn label<'h>(&self, host: &'h str) -> Option<&'h str> {
        let label = host.strip_prefix(&*self.before)?.strip_suffix(&*self.after)?;
        (!label.is_empty() && !label.contains('.')).then_some(label)
    }
}

/// How hints are read.
#[derive(Debug, Clone)]
pub struct HintRules {
    patterns: Vec<HostPattern>,
    trusted_proxies: Vec<IpNet>,
    tenant_header: bool,
}

impl HintRules {
    /// The rules of the configuration.
    ///
    /// # Errors
    /// [`InvalidName`] when a host pattern is none.
    pub fn new(settings: &AuthSettings) -> Result<Self, InvalidName> {
        let patterns = settings.hosts.iter().map(|raw| HostPattern::parse(raw)).collect::<Result<_, _>>()?;
        Ok(Self {
            patterns,
            trusted_proxies: settings.trusted_proxies.clone(),
            tenant_header: settings.tenant_header,
        })
    }

    /// The tenants that the request names: at most one by id and one by slug.
    ///
    /// A host outside every pattern, the base domain among them, names none.
    ///
    /// # Errors
    /// [`MalformedHint`] when one cannot be read, or when two of the same form differ.
    pub fn read(&self, request: &RequestHints<'_>) -> Result<Vec<TenantHint>, MalformedHint> {
        let mut hints = Vec::new();
        if self.tenant_header {
            for raw in &request.x_tenant_id {
                collect(&mut hints, TenantHint::parse(raw)?)?;
            }
        }
        if self.patterns.is_empty() {
            return Ok(hints);
        }
        let mut first: Option<String> = None;
        for raw in &request.host {
            let name = host_name(raw)?;
            if first.as_ref().is_some_and(|first| *first != name) {
                return Err(MalformedHint("two different host names"));
            }
            self.read_host(&name, &mut hints)?;
            first = Some(name);
        }
        if request.peer.is_some_and(|peer| self.trusts(peer)) {
            // A chain of proxies appends to one header; every name in it must agree.
            for raw in request.forwarded_host.iter().flat_map(|raw| raw.split(|byte| *byte == b',')) {
                self.read_host(&host_name(raw)?, &mut hints)?;
            }
        }
        Ok(hints)
    }

    /// Whether the peer is one of the trusted proxies.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted_proxies.iter().any(|net| net.contains(&peer))
    }

    fn read_host(&self, name: &str, hints: &mut Vec<TenantHint>) -> Result<(), MalformedHint> {
        for label in self.patterns.iter().filter_map(|pattern| pattern.label(name)) {
            let slug = Slug::parse(label).map_err(|_| MalformedHint("the host name's label is no slug"))?;
            collect(hints, TenantHint::Slug(slug))?;
        }
        Ok(())
    }
}

fn collect(hints: &mut Vec<TenantHint>, hint: TenantHint) -> Result<(), MalformedHint> {
    let same_form = |known: &&TenantHint| std::mem::discriminant(*known) == std::mem::discriminant(&hint);
    match hints.iter().find(same_form) {
        Some(known) if *known != hint => Err(MalformedHint("the request names two tenants")),
        Some(_) => Ok(()),
        None => {
            hints.push(hint);
            Ok(())
        }
    }
}

/// The host name in lower case, without port and without the dot that makes it absolute.
fn host_name(raw: &[u8]) -> Result<String, MalformedHint> {
    let malformed = MalformedHint("the host name cannot be read");
    let text = std::str::from_utf8(raw).map_err(|_| malformed)?.trim_matches([' ', '\t']);
    if text.starts_with('[') {
        return Ok(text.to_ascii_lowercase());
    }
    let name = match text.split_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) => return Err(malformed),
        None => text,
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    // The underscore is no letter of a host name, but container networks use it.
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if letters && name.split('.').all(|label| !label.is_empty()) { Ok(name) } else { Err(malformed) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "6f1c2a34-0000-4000-8000-00000000000a";

    fn rules() -> HintRules {
        HintRules::new(&AuthSettings {
            hosts: vec!["{slug}.base.example".into(), "app.{slug}.base.example".into()],
            trusted_proxies: vec!["10.0.0.0/8".parse().expect("a network")],
            ..AuthSettings::default()
        })
        .expect("patterns")
    }

    fn slug(name: &str) -> TenantHint {
        TenantHint::Slug(Slug::parse(name).expect("a slug"))
    }

    fn by_host(hosts: &[&str]) -> Result<Vec<TenantHint>, MalformedHint> {
        rules().read(&RequestHints {
            host: hosts.iter().map(|host| host.as_bytes()).collect(),
            ..RequestHints::default()
        })
    }

    fn by_header(values: &[&str]) -> Result<Vec<TenantHint>, MalformedHint> {
        rules().read(&RequestHints {
            x_tenant_id: values.iter().map(|value| value.as_bytes()).collect(),
            ..RequestHints::default()
        })
    }

    #[test]
    fn a_host_name_of_a_pattern_names_its_slug_in_any_spelling() {
        for host in [
            "acme.base.example",
            "ACME.Base.Example",
            "acme.base.example.",
            "acme.base.example:9621",
            "acme.base.example.:443",
            "app.acme.base.example",
        ] {
            assert_eq!(by_host(&[host]), Ok(vec![slug("acme")]), "{host}");
        }
        assert_eq!(by_host(&["acme.base.example", "ACME.base.example:80"]), Ok(vec![slug("acme")]));
    }

    #[test]
    fn a_host_name_outside_every_pattern_names_nobody() {
        for host in [
            "base.example",
            "127.0.0.1:9621",
            "[::1]:9621",
            "localhost",
            "my_service:9621",
            "x.y.base.example",
            "acme.base.example.evil",
            "acmebase.example",
        ] {
            assert_eq!(by_host(&[host]), Ok(vec![]), "{host}");
        }
    }

    #[test]
    fn a_host_name_that_cannot_be_read_is_malformed() {
        for host in [
            "",
            ".base.example",
            "acme..base.example",
            "acme.base.example..",
            "-acme.base.example",
            "ac_me.base.example",
            "acme.base.example:80:80",
            "acme.base.example:x",
            "acme@acme.base.example",
            "acme.base.example/x",
            "acmé.base.example",
            "acme.base.example,other.base.example",
        ] {
            assert!(by_host(&[host]).is_err(), "{host}");
        }
        assert!(by_host(&["acme.base.example", "other.base.example"]).is_err());
        assert!(by_host(&["acme.base.example", "localhost"]).is_err());
    }

    #[test]
    fn the_header_takes_an_id_or_a_slug_and_nothing_else() {
        let id = TenantHint::Id(TenantId(ID.parse().expect("a uuid")));
        assert_eq!(by_header(&[ID]), Ok(vec![id.clone()]));
        assert_eq!(by_header(&[&ID.to_uppercase(), ID]), Ok(vec![id.clone()]));
        assert_eq!(by_header(&["Acme", " acme "]), Ok(vec![slug("acme")]));
        assert_eq!(by_header(&[ID, "acme"]), Ok(vec![id, slug("acme")]));
        let braces = format!("{{{ID}}}");
        for raw in ["", " ", "acme.", "a/b", "../acme", "acme, other", "acme\n", &braces, "acme;x", "é", "*"]
        {
            assert!(by_header(&[raw]).is_err(), "{raw}");
        }
        assert!(by_header(&["acme", "other"]).is_err());
        assert!(by_header(&[ID, "6f1c2a34-0000-4000-8000-00000000000b"]).is_err());
    }

    #[test]
    fn header_and_host_must_not_name_two_slugs() {
        let read = |header: &str| {
            rules().read(&RequestHints {
                host: vec![b"acme.base.example"],
                x_tenant_id: vec![header.as_bytes()],
                ..RequestHints::default()
            })
        };
        assert_eq!(read("acme"), Ok(vec![slug("acme")]));
        assert!(read("other").is_err());
    }

    #[test]
    fn a_forwarded_host_counts_only_from_a_trusted_proxy() {
        let read = |peer: Option<&str>, host: &'static str, forwarded: &'static str| {
            rules().read(&RequestHints {
                host: vec![host.as_bytes()],
                forwarded_host: vec![forwarded.as_bytes()],
                peer: peer.map(|peer| peer.parse().expect("an address")),
                ..RequestHints::default()
            })
        };
        assert_eq!(read(Some("192.0.2.1"), "inner", "acme.base.example"), Ok(vec![]));
        assert_eq!(read(Some("192.0.2.1"), "inner", "???"), Ok(vec![]));
        assert_eq!(read(None, "inner", "acme.base.example"), Ok(vec![]));
        assert_eq!(read(Some("10.1.2.3"), "inner", "acme.base.example"), Ok(vec![slug("acme")]));
        assert_eq!(read(Some("::ffff:10.1.2.3"), "inner", "acme.base.example"), Ok(vec![slug("acme")]));
        assert!(read(Some("10.1.2.3"), "acme.base.example", "other.base.example").is_err());
        assert!(read(Some("10.1.2.3"), "inner", "acme.base.example, other.base.example").is_err());
        assert!(read(Some("10.1.2.3"), "inner", "???").is_err());
    }

    #[test]
    fn a_pattern_needs_one_whole_label_and_a_domain() {
        for raw in [
            "",
            "example.com",
            "{slug}",
            "app.{slug}",
            "x{slug}.com",
            "{slug}x.com",
            "{slug}.{slug}.com",
            "{slug}..com",
        ] {
            assert!(HostPattern::parse(raw).is_err(), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            host in proptest::collection::vec(any::<u8>(), 0..80),
            header in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let request = RequestHints {
                host: vec![&host],
                forwarded_host: vec![&header],
                x_tenant_id: vec![&header],
                peer: Some([10, 0, 0, 1].into()),
            };
            if let Ok(hints) = rules().read(&request) {
                prop_assert!(hints.len() <= 2);
            }
        }
    }
}
