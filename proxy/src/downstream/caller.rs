//! Who calls, as far as records may say.
//!
//! A connection has an address, and behind a trusted proxy each call on it may have another one. Which one it is costs a
//! walk through two fields, so it is asked when a record is written and where addresses are recorded at all: otherwise
//! there is no [`Caller`].

use std::net::IpAddr;
use std::sync::Arc;

use llm_proxy_core::http1::call::{Call, Name};
use llm_proxy_core::network::cidr::Network;
use llm_proxy_core::network::client_address::{client_address, truncated};

/// What holds for the addresses of all callers.
#[derive(Debug)]
pub struct AddressRules {
    /// Who is believed about where a call came from.
    pub trusted: Arc<[Network]>,
    /// Only the network around an address is recorded.
    pub truncates: bool,
}

/// Where a connection comes from.
#[derive(Clone, Debug)]
pub struct Caller {
    from: IpAddr,
    rules: Arc<AddressRules>,
}

impl Caller {
    /// `from`: who opened the connection, or whom a believed PROXY protocol header names.
    pub fn new(from: IpAddr, rules: Arc<AddressRules>) -> Self {
        Self { from, rules }
    }

    /// The client of a call, for its record.
    pub fn of_call(&self, call: &Call) -> String {
        let client =
            client_address(self.from, &self.rules.trusted, values(call, "x-forwarded-for"), values(call, "forwarded"));
        self.recorded(client)
    }

    /// The same where a head could not be read as a call: the connection's.
    pub fn of_connection(&self) -> String {
        self.recorded(self.from.to_canonical())
    }

    fn recorded(&self, address: IpAddr) -> String {
        if self.rules.truncates { truncated(address).to_string() } else { address.to_string() }
    }
}

/// The lines of a field that goes nowhere upstream.
fn values<'c>(call: &'c Call, name: &'static str) -> impl DoubleEndedIterator<Item = &'c [u8]> {
    let is_it = move |kind: Name, found: &[u8]| kind == Name::Dropped && found.eq_ignore_ascii_case(name.as_bytes());
    call.fields().iter().filter(move |field| is_it(field.kind, call.name(field))).map(move |field| call.value(field))
}

#[cfg(test)]
mod tests {
    use llm_proxy_core::http1::request_head;

    use super::*;

    fn call(fields: &[(&str, &str)]) -> Call {
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        request_head::parse(format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n").into()).unwrap()
    }

    fn caller(from: &str, truncates: bool) -> Caller {
        let trusted = ["10.0.0.0/8"].map(|network| network.parse::<Network>().unwrap()).into();
        Caller::new(from.parse().unwrap(), Arc::new(AddressRules { trusted, truncates }))
    }

    #[test]
    fn a_trusted_connection_tells_for_whom_each_call_is() {
        for (from, fields, full, part) in [
            ("192.0.2.7", &[("x-forwarded-for", "203.0.113.9")][..], "192.0.2.7", "192.0.2.0/24"),
            ("::ffff:192.0.2.7", &[], "192.0.2.7", "192.0.2.0/24"),
            ("10.0.0.1", &[], "10.0.0.1", "10.0.0.0/24"),
            ("10.0.0.1", &[("X-Forwarded-For", "203.0.113.9")], "203.0.113.9", "203.0.113.0/24"),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "198.51.100.1, 203.0.113.9, 10.2.3.4")],
                "203.0.113.9",
                "203.0.113.0/24",
            ),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "198.51.100.1"), ("accept", "*/*"), ("X-FORWARDED-FOR", "203.0.113.9")],
                "203.0.113.9",
                "203.0.113.0/24",
            ),
            (
                "10.0.0.1",
                &[("Forwarded", "for=\"[2001:db8:1:2::3]:99\";proto=https")],
                "2001:db8:1:2::3",
                "2001:db8:1::/48",
            ),
            (
                "10.0.0.1",
                &[("x-real-ip", "203.0.113.9"), ("x-forwarded-host", "203.0.113.9")],
                "10.0.0.1",
                "10.0.0.0/24",
            ),
        ] {
            let call = call(fields);
            assert_eq!(caller(from, false).of_call(&call), full, "{from} {fields:?}");
            assert_eq!(caller(from, true).of_call(&call), part, "{from} {fields:?}");
        }
    }

    #[test]
    fn a_head_that_is_no_call_came_from_its_connection() {
        for (from, full, part) in
            [("10.0.0.1", "10.0.0.1", "10.0.0.0/24"), ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.0/24")]
        {
            assert_eq!(caller(from, false).of_connection(), full);
            assert_eq!(caller(from, true).of_connection(), part);
        }
    }
}
