//! Who is on the other end of a connection, and by which way a connection goes out: decided from addresses, field
//! values and variables that somebody else has read.
//!
//! IPv4 and IPv6 meet in one form here: an IPv4-mapped IPv6 address (`::ffff:192.0.2.1`, what a dual-stack socket
//! reports) is the IPv4 address it stands for, in networks, in addresses looked up in them, and in results.

pub mod cidr;
pub mod client_address;
pub mod outbound_proxy;
pub mod proxy_protocol;

use std::str::FromStr;

/// A decimal number. `parse` alone would take `+8`, and `08` is 8 to some and an octal slip to others.
fn decimal<T: FromStr>(digits: &str) -> Option<T> {
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if is_plain { digits.parse().ok() } else { None }
}
