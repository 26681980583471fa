//! Numbers that are about somebody: payment cards, bank accounts, telephones.
//!
//! Digits alone prove nothing, so each must have more: a card its issuer's first digits and its check digit, an account
//! the length of its country and its remainder, a telephone number a `+`, or the groups that people write it in.

use super::{ends_number, ends_word};

/// Length of the payment card number (ISO/IEC 7812) that `rest` begins with, written in one or in groups.
///
/// 13 to 19 digits with a right check digit (Luhn), the first of them as card schemes have them. A time in
/// milliseconds, which has 13, begins with 1.
pub(super) fn card(rest: &[u8]) -> Option<usize> {
    let mut digits = [0u8; 19];
    let mut count = 0usize;
    let mut end = 0usize;
    let mut groups = 0usize;
    let mut separator = None;
    let mut found = None;
    loop {
        let group = digits_at(rest, end);
        let is_group = if groups == 0 { group >= 4 } else { (3..=6).contains(&group) };
        let Some(slots) = digits.get_mut(count..count.saturating_add(group)).filter(|_| is_group) else { break };
        for (slot, byte) in slots.iter_mut().zip(rest.get(end..).unwrap_or_default()) {
            *slot = byte.wrapping_sub(b'0');
        }
        count = count.saturating_add(group);
        end = end.saturating_add(group);
        groups = groups.saturating_add(1);
        let is_fraction = rest.get(end) == Some(&b'.') && digits_at(rest, end.saturating_add(1)) > 0;
        if ends_word(rest, end) && !is_fraction && digits.get(..count).is_some_and(is_card) {
            found = Some(end);
        }
        let next = rest.get(end).copied().filter(|byte| matches!(byte, b' ' | b'-'));
        let goes_on = if groups == 1 { group == 4 && next.is_some() } else { next == separator };
        if !goes_on {
            break;
        }
        separator = next;
        end = end.saturating_add(1);
    }
    found
}

fn is_card(digits: &[u8]) -> bool {
    let Some(first) = digits.first() else { return false };
    let four =
        digits.iter().take(4).fold(0u16, |number, digit| number.wrapping_mul(10).wrapping_add(u16::from(*digit)));
    let is_issued = match (digits.len(), first) {
        (13, 4) | (14 | 15, 3) | (16, 3..=6) | (17 | 18, 5 | 6) | (19, 4..=6) => true,
        (16, 2) => (2221..=2720).contains(&four),
        _ => false,
    };
    is_issued && has_check_digit(digits)
}

/// Luhn: every second digit from the right is doubled, the digits of all of it add up to a multiple of ten.
fn has_check_digit(digits: &[u8]) -> bool {
    const DOUBLED: [u8; 10] = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9];
    let doubled = |digit: u8| DOUBLED.get(usize::from(digit)).copied().unwrap_or_default();
    let counted =
        digits.iter().rev().enumerate().map(|(place, digit)| if place % 2 == 1 { doubled(*digit) } else { *digit });
    counted.map(u32::from).sum::<u32>() % 10 == 0
}

/// Length of the IBAN (ISO 13616) that `rest` begins with, in one or in groups of four: of a country that has them, as
/// long as they are there, and with remainder 1 modulo 97.
pub(super) fn iban(rest: &[u8]) -> Option<usize> {
    let country = rest.get(..2).and_then(|name| std::str::from_utf8(name).ok())?;
    let length: usize = LENGTHS.split(' ').find_map(|entry| entry.strip_prefix(country))?.parse().ok()?;
    let mut account = Vec::with_capacity(length);
    let mut end = 0usize;
    while account.len() < length {
        let byte = rest.get(end)?;
        end = end.saturating_add(1);
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' => account.push(*byte),
            b' ' if account.len() % 4 == 0 && rest.get(end) != Some(&b' ') => {}
            _ => return None,
        }
    }
    let (country, number) = account.split_at_checked(4)?;
    let checked = number.iter().chain(country).fold(0u32, |remainder, byte| {
        let (shift, value) = match byte {
            b'0'..=b'9' => (10, byte.wrapping_sub(b'0')),
            _ => (100, byte.wrapping_sub(b'A').wrapping_add(10)),
        };
        remainder.wrapping_mul(shift).wrapping_add(u32::from(value)) % 97
    });
    (checked == 1 && ends_word(rest, end)).then_some(end)
}

/// Length of an IBAN by country, as the SWIFT registry has them.
const LENGTHS: &str = "\
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 \
    EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 \
    JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 \
    NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 TN24 TR26 UA29 VG24 XK20";

/// Length of the telephone number that `rest` begins with: an international one, or a national one in groups as they
/// are written in North America (`(415) 555-2671`), or with a trunk zero (`030 12345678`).
///
/// North American numbers in groups with spaces are left: `512 768 1024` is such a list of numbers as models are asked
/// about all day.
pub(super) fn phone(rest: &[u8]) -> Option<usize> {
    let national = || north_american(rest).or_else(|| with_trunk_zero(rest)).or_else(|| in_pairs(rest));
    international(rest).or_else(national)
}

/// `+` or `00`, a country, and in all 8 to 15 digits (E.164); after `00` in groups.
fn international(rest: &[u8]) -> Option<usize> {
    let (prefix, needs_groups) = match rest {
        [b'+', b'1'..=b'9', ..] => (1usize, false),
        [b'0', b'0', b'1'..=b'9', ..] => (2, true),
        _ => return None,
    };
    let mut digits = 0usize;
    let mut groups = 0usize;
    let mut place = prefix;
    let mut found = None;
    loop {
        let group = digits_at(rest, place);
        digits = digits.saturating_add(group);
        if group == 0 || digits > 15 {
            break;
        }
        place = place.saturating_add(group);
        groups = groups.saturating_add(1);
        let end = after_extension(rest, place);
        if digits >= 8 && (groups > 1 || !needs_groups) && ends_word(rest, end) {
            found = Some(end);
        }
        let between = match rest.get(place..).unwrap_or_default() {
            [b' ' | b'-', b'(', b'0'..=b'9', ..] | [b')', b' ' | b'-', b'0'..=b'9', ..] => 2,
            [b' ' | b'-' | b'.' | b'/' | b'(' | b')', b'0'..=b'9', ..] => 1,
            _ => break,
        };
        place = place.saturating_add(between);
    }
    found
}

/// Three, three and four digits, the first two groups from 2 on; a `1` may stand before.
fn north_american(rest: &[u8]) -> Option<usize> {
    let start = if matches!(rest, [b'1', b' ' | b'-' | b'.', ..]) { 2usize } else { 0 };
    let number = rest.get(start..)?;
    let is_group = |place: usize| {
        let digits = number.get(place..place.saturating_add(3)).unwrap_or_default();
        matches!(digits, [b'2'..=b'9', b'0'..=b'9', b'0'..=b'9'])
    };
    let (exchange, separator) = match number {
        [b'(', _, _, _, b')', b' ' | b'-', ..] if is_group(1) => (6usize, None),
        [b'(', _, _, _, b')', ..] if is_group(1) => (5, None),
        [_, _, _, separator @ (b'-' | b'.'), ..] if is_group(0) => (4, Some(separator)),
        _ => return None,
    };
    let line = exchange.saturating_add(4);
    let between = number.get(exchange.saturating_add(3))?;
    let is_between = separator.map_or(matches!(between, b'-' | b'.' | b' '), |separator| separator == between);
    let end = after_extension(number, line.saturating_add(4));
    let is_number = is_group(exchange) && is_between && digits_at(number, line) == 4 && ends_number(number, end);
    is_number.then(|| start.saturating_add(end))
}

/// Two to four groups, 10 to 12 digits in all: an area of three to five that begins with one zero, then three or more.
/// In brackets the area may have two, and what follows may touch them. An extension may be at the end: `030 12345-67`.
fn with_trunk_zero(rest: &[u8]) -> Option<usize> {
    let (open, least) = match rest {
        [b'(', b'0', b'1'..=b'9', ..] => (1usize, 2usize),
        [b'0', b'1'..=b'9', ..] => (0, 3),
        _ => return None,
    };
    let mut digits = digits_at(rest, open);
    let mut end = open.saturating_add(digits);
    if !(least..=5).contains(&digits) || open > 0 && rest.get(end) != Some(&b')') {
        return None;
    }
    end = end.saturating_add(open); // the closing one
    let after = rest.get(end..).unwrap_or_default();
    let separator = [&b" / "[..], b" ", b"-", b"/"].into_iter().find(|separator| after.starts_with(separator));
    let separator = separator.or((open > 0).then_some(&b""[..]))?;
    let mut groups = 1usize;
    while groups < 4 && rest.get(end..).is_some_and(|rest| rest.starts_with(separator)) {
        let start = end.saturating_add(separator.len());
        let group = digits_at(rest, start);
        if group < 3 {
            break;
        }
        digits = digits.saturating_add(group);
        end = start.saturating_add(group);
        groups = groups.saturating_add(1);
    }
    let has_room = groups > 1 && separator != b"-" && rest.get(end) == Some(&b'-');
    let extension = if has_room { digits_at(rest, end.saturating_add(1)) } else { 0 };
    let lengths = if (1..=5).contains(&extension) {
        digits = digits.saturating_add(extension);
        end = end.saturating_add(1).saturating_add(extension);
        9..=13
    } else {
        10..=12
    };
    let end = after_extension(rest, end);
    (lengths.contains(&digits) && ends_number(rest, end)).then_some(end)
}

/// Five pairs of digits, the first with a zero, as they are written in France (`06 12 34 56 78`). Pairs that count up are
/// a list.
fn in_pairs(rest: &[u8]) -> Option<usize> {
    const BYTES: usize = 14;
    let [b'0', b'1'..=b'9', separator @ (b' ' | b'.' | b'-'), ..] = rest else { return None };
    let number = |pair: &[u8]| match pair {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9', after @ ..] if after.iter().all(|byte| byte == separator) => {
            Some(tens.wrapping_sub(b'0').wrapping_mul(10).wrapping_add(ones.wrapping_sub(b'0')))
        }
        _ => None,
    };
    let pairs: Vec<u8> = rest.get(..BYTES)?.chunks(3).map_while(number).collect();
    let counts_up = pairs.windows(2).all(|two| matches!(two, [one, next] if one.wrapping_add(1) == *next));
    let goes_on = rest.get(BYTES) == Some(separator) && digits_at(rest, BYTES.saturating_add(1)) > 0;
    (pairs.len() == 5 && !counts_up && !goes_on && ends_number(rest, BYTES)).then_some(BYTES)
}

/// Where a telephone number ends with its extension, as in `415-555-2671x123`; where it ends without one, if it has none.
fn after_extension(rest: &[u8], end: usize) -> usize {
    const MOST_DIGITS: usize = 6;
    let mark = match rest.get(end..).unwrap_or_default() {
        [b'x' | b'X', b'0'..=b'9', ..] => 1usize,
        [b'e' | b'E', b'x' | b'X', b't' | b'T', b'0'..=b'9', ..] => 3,
        _ => return end,
    };
    let start = end.saturating_add(mark);
    let digits = rest.get(start..).unwrap_or_default().iter().take(MOST_DIGITS);
    start.saturating_add(digits.take_while(|byte| byte.is_ascii_digit()).count())
}

fn digits_at(rest: &[u8], place: usize) -> usize {
    rest.get(place..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(find: fn(&[u8]) -> Option<usize>, cases: &[(&str, &str)]) {
        for (text, expected) in cases {
            let found = find(text.as_bytes()).map_or("", |end| &text[..end]);
            assert_eq!(found, *expected, "{text}");
        }
    }

    #[test]
    fn cards_have_an_issuer_and_a_check_digit() {
        check(
            card,
            &[
                ("4242424242424242", "4242424242424242"),
                ("4242 4242 4242 4242, thanks", "4242 4242 4242 4242"),
                ("4111-1111-1111-1111.", "4111-1111-1111-1111"),
                ("5555555555554444", "5555555555554444"),
                ("2223003122003222", "2223003122003222"),
                ("3782 822463 10005", "3782 822463 10005"),
                ("378282246310005", "378282246310005"),
                ("30569309025904", "30569309025904"),
                ("6011111111111117", "6011111111111117"),
                ("4222222222222", "4222222222222"),
                ("4111 1111 1111 1111 12/26", "4111 1111 1111 1111"),
                ("4111 1111 1111 1111 123", "4111 1111 1111 1111"),
                ("4111111111111111\"}", "4111111111111111"),
                // A wrong check digit, an issuer that is none, other lengths, other words.
                ("4111111111111112", ""),
                ("1731234567898", ""),
                ("1234567812345670", ""),
                ("41111111111111111111", ""),
                ("4111 1111 1111", ""),
                ("4111-1111 1111-1111", ""),
                ("4111111111111111a", ""),
                ("4111111111111111_2", ""),
                ("4111111111111111.5", ""),
                ("41 1111 1111 1111 11", ""),
                ("", ""),
            ],
        );
    }

    #[test]
    fn accounts_have_a_length_and_a_remainder() {
        check(
            iban,
            &[
                ("DE89370400440532013000", "DE89370400440532013000"),
                ("DE89 3704 0044 0532 0130 00, please", "DE89 3704 0044 0532 0130 00"),
                ("GB29NWBK60161331926819", "GB29NWBK60161331926819"),
                ("FR14 2004 1010 0505 0001 3M02 606", "FR14 2004 1010 0505 0001 3M02 606"),
                ("NO9386011117947", "NO9386011117947"),
                ("DE89370400440532013001", ""),
                ("DE8937040044053201300", ""),
                ("DE893704004405320130000", ""),
                ("DE89  3704 0044 0532 0130 00", ""),
                ("DE89 370 40044 0532 0130 00", ""),
                ("de89370400440532013000", ""),
                ("XX89370400440532013000", ""),
                ("DE", ""),
            ],
        );
    }

    #[test]
    fn telephone_numbers_are_known_by_how_they_are_written() {
        check(
            phone,
            &[
                ("+14155552671", "+14155552671"),
                ("+1 (415) 555-2671.", "+1 (415) 555-2671"),
                ("+49 (0)30 1234567", "+49 (0)30 1234567"),
                ("+49 30/1234567 x", "+49 30/1234567"),
                ("+44 20 7946 0958", "+44 20 7946 0958"),
                ("0049 30 1234567", "0049 30 1234567"),
                ("(415) 555-2671", "(415) 555-2671"),
                ("(415)555-2671", "(415)555-2671"),
                ("415-555-2671", "415-555-2671"),
                ("415.555.2671.", "415.555.2671"),
                ("1-800-555-2671", "1-800-555-2671"),
                ("030 12345678", "030 12345678"),
                ("0171-2345678", "0171-2345678"),
                ("020 7946 0958", "020 7946 0958"),
                ("(030) 12345678", "(030) 12345678"),
                ("(0171)2345678", "(0171)2345678"),
                ("(02) 9876 5432.", "(02) 9876 5432"),
                ("089 / 12345678", "089 / 12345678"),
                ("030 12345-67", "030 12345-67"),
                ("06 12 34 56 78, merci", "06 12 34 56 78"),
                ("01.42.68.53.00", "01.42.68.53.00"),
                ("(415)-555-2671", "(415)-555-2671"),
                ("415-555-2671x123", "415-555-2671x123"),
                ("+1-415-555-2671ext5", "+1-415-555-2671ext5"),
                ("001-415-555-2671x12345", "001-415-555-2671x12345"),
                ("+14155552671xyz", ""),
                ("415-555-2671x1234567", ""),
                ("01 02 03 04 05", ""),
                ("06 12 34 56 78 90", ""),
                ("06 12 34 56", ""),
                ("(030 12345678", ""),
                ("(030)", ""),
                ("+1234567", ""),
                ("+0123456789", ""),
                ("+1234567890123456", ""),
                ("0049301234567", ""),
                ("512 768 1024", ""),
                ("115-555-2671", ""),
                ("415-555.2671", ""),
                ("415-555-26712", ""),
                ("415-555-2671-8", ""),
                ("4155552671", ""),
                ("2024-11-21", ""),
                ("01.02.2024", ""),
                ("0123456789", ""),
                ("030 1234", ""),
                ("(415) 55-2671", ""),
                ("(four)", ""),
                ("+", ""),
            ],
        );
    }
}
