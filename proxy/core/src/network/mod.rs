//! Who is on the other end of a connection, and by which way a connection goes out: decided from addresses, field
//! values and variables that somebody else has read.
//!
//! IPv4 and IPv6 meet in one form here: an IPv4-mapped IPv6 address (`::ffff:192.0.2.1`, what a dual-stack socket
//! reports) is the IPv4 address it stands for, in networks, in addresses looked up in them, and in results.

pub mod cidr;
pub mod client_address;
pub mod outbound_proxy;
pub mod proxy_protocol;
