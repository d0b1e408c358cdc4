//! The address that a request came from, for the limits that hold before anybody is known.
//!
//! **Invariant:** what a request says of its own way is believed only as far as trusted proxies said it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Whose requests are counted together: one IPv4 address, or the network of 64 bits that one IPv6 customer has.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// The nearest address that is no trusted proxy's: the peer's, or, where that is one, what the chain of
/// `X-Forwarded-For` says, read from its end. What cannot be read ends the chain.
#[must_use]
pub fn client(peer: IpAddr, forwarded_for: &[&[u8]], trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut nearest = peer;
    let chain = forwarded_for.iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
    for hop in chain {
        if !trusted(nearest) {
            break;
        }
        let Some(address) = read(hop) else { break };
        nearest = address;
    }
    nearest
}

/// An address, with a port or without.
fn read(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address =
        bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn from(peer: &str, forwarded: &[&str]) -> IpAddr {
        let forwarded: Vec<&[u8]> = forwarded.iter().map(|value| value.as_bytes()).collect();
        client(ip(peer), &forwarded, |address| address.to_string().starts_with("10."))
    }

    #[test]
    fn only_trusted_proxies_say_where_a_request_came_from() {
        assert_eq!(from("192.0.2.1", &["198.51.100.7"]), ip("192.0.2.1"));
        assert_eq!(from("10.0.0.1", &["198.51.100.7"]), ip("198.51.100.7"));
        // What the client itself wrote stands before what the proxies saw.
        assert_eq!(from("10.0.0.1", &["203.0.113.9, 198.51.100.7, 10.0.0.2"]), ip("198.51.100.7"));
        assert_eq!(from("10.0.0.1", &["203.0.113.9", "198.51.100.7"]), ip("198.51.100.7"));
        assert_eq!(from("10.0.0.1", &["198.51.100.7:4711"]), ip("198.51.100.7"));
        assert_eq!(from("10.0.0.1", &["[2001:db8::1]:4711"]), ip("2001:db8::1"));
        assert_eq!(from("10.0.0.1", &["[2001:db8::1]"]), ip("2001:db8::1"));
        assert_eq!(from("10.0.0.1", &[]), ip("10.0.0.1"));
        assert_eq!(from("10.0.0.1", &["198.51.100.7, unknown"]), ip("10.0.0.1"));
    }

    #[test]
    fn one_customer_is_counted_once_however_many_addresses_it_has() {
        assert_eq!(network(ip("2001:db8:1:2:3:4:5:6")), network(ip("2001:db8:1:2::")));
        assert_ne!(network(ip("2001:db8:1:2::1")), network(ip("2001:db8:1:3::1")));
        assert_eq!(network(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        assert_ne!(network(ip("192.0.2.1")), network(ip("192.0.2.2")));
    }
}
