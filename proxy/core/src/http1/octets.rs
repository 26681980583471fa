//! Which octets may stand where in a head (RFC 9110 §5.5, §5.6.2; RFC 3986 §2).

/// `tchar` of RFC 9110 §5.6.2.
const TOKEN: u8 = 1;
/// What a target may have: visible ASCII less what RFC 3986 wants percent-encoded, less `#` and `\\`.
const TARGET: u8 = 2;

/// What each octet may stand in. A table, because every octet of every head is looked up.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut octet = 0u8;
    loop {
        let mut class = 0;
        if is_token_octet(octet) {
            class |= TOKEN;
        }
        let encoded = matches!(octet, b'#' | b'\\' | b'<' | b'>' | b'"' | b'^' | b'`' | b'{' | b'|' | b'}');
        if octet > 0x20 && octet < 0x7F && !encoded {
            class |= TARGET;
        }
        #[expect(
            clippy::indexing_slicing,
            reason = "an octet is a valid index of 256 classes; evaluated at compile time"
        )]
        {
            classes[octet as usize] = class;
        }
        if octet == u8::MAX {
            break classes;
        }
        octet = octet.wrapping_add(1);
    }
};

fn all(octets: &[u8], class: u8) -> bool {
    octets.iter().all(|octet| CLASSES.get(usize::from(*octet)).is_some_and(|found| found & class != 0))
}

/// How many of the first octets are a token's.
pub fn token_length(text: &[u8]) -> usize {
    let is_other = |octet: &u8| CLASSES.get(usize::from(*octet)).is_none_or(|found| found & TOKEN == 0);
    text.iter().position(is_other).unwrap_or(text.len())
}

/// Whether a field value has an octet that RFC 9110 §5.5 forbids. No early exit: without one the compiler looks at many octets at once.
pub fn has_control(value: &[u8]) -> bool {
    value.iter().fold(false, |found, octet| found | ((*octet < 0x20) & (*octet != b'\t')) | (*octet == 0x7F))
}

/// Whether all of this is a token (RFC 9110 §5.6.2). The empty text is one here.
pub fn is_token(text: &[u8]) -> bool {
    all(text, TOKEN)
}

/// Whether all of this may stand in a request target. The empty text is one here.
pub fn is_target(text: &[u8]) -> bool {
    all(text, TARGET)
}

/// One octet of a token.
pub const fn is_token_octet(octet: u8) -> bool {
    octet.is_ascii_alphanumeric()
        || matches!(
            octet,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}
