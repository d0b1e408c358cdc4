//! Addresses that are on this machine, and those that may be spoken to.
//!
//! **Invariant:** what is sent in the clear does not leave the machine.

use core::net::IpAddr;

use url::Url;

/// Whether a host is this machine: `localhost`, or an address of its own, in brackets or without.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether what an address names is on this machine.
#[must_use]
pub fn is_on_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback)
}

/// An address that may be spoken to: https, or http on loopback, without credentials.
///
/// # Errors
/// The rule, in words for whoever wrote the configuration.
pub fn guarded(url: &str) -> Result<Url, &'static str> {
    let rule = "an https address without credentials, or http on loopback";
    let url = Url::parse(url).map_err(|_| rule)?;
    let bare = url.username().is_empty() && url.password().is_none();
    let allowed = url.scheme() == "https" || (url.scheme() == "http" && is_on_loopback(&url));
    if bare && allowed && url.has_host() { Ok(url) } else { Err(rule) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_this_machine() {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "10.0.0.1", "0.0.0.0", "::", "127.0.0.1.test", "localhost.test", "[::2]"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn nothing_is_sent_in_the_clear_beyond_loopback() {
        for good in
            ["https://alarms.test/hook", "http://127.0.0.1:9/x", "http://[::1]:9/x", "http://localhost/x"]
        {
            assert!(guarded(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "alarms.test",
            "http://alarms.test/hook",
            "http://10.0.0.1/x",
            "http://0.0.0.0/",
            "http://127.0.0.1.evil.test/",
            "http://localhost.evil.test/",
            "https://user:word@alarms.test/",
            "https://user@alarms.test/",
            "ftp://127.0.0.1/",
            "file:///etc/passwd",
        ] {
            assert!(guarded(bad).is_err(), "{bad}");
        }
    }
}
