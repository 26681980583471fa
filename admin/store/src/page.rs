//! Pages of a list. Rows are ordered by id, which for UUIDv7 is the order they were made in, so that a page stays in
//! place while rows are added.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::error::StoreError;

const MOST_ROWS: u32 = 1_000;

/// Which part of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// `next_cursor` of the page before; `None` is the beginning.
    pub cursor: Option<String>,
    /// Rows wanted; 1 to 1,000, anything else is taken as the nearest of the two.
    pub limit: u32,
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paged<T> {
    /// Its rows, oldest first.
    pub data: Vec<T>,
    /// Where the next page begins; `None` at the end of the list.
    pub next_cursor: Option<String>,
}

impl Page {
    /// The id that the page's rows come after; empty, which is before all ids, for the first page.
    pub(crate) fn after(&self) -> Result<String, StoreError> {
        let Some(cursor) = &self.cursor else { return Ok(String::new()) };
        let octets = URL_SAFE_NO_PAD.decode(cursor).ok();
        let id = octets.and_then(|octets| Uuid::from_slice(&octets).ok());
        id.map(|id| id.to_string())
            .ok_or_else(|| StoreError::Invalid("the cursor is not one that a list gave".to_owned()))
    }

    /// One row more than asked tells whether there is a next page.
    pub(crate) fn rows_to_read(&self) -> i64 {
        i64::from(self.rows()).saturating_add(1)
    }

    /// Makes the page of rows that were read with [`Page::rows_to_read`].
    pub(crate) fn cut<T>(&self, mut rows: Vec<T>, id: impl Fn(&T) -> &str) -> Paged<T> {
        let rows_asked = usize::try_from(self.rows()).unwrap_or(usize::MAX);
        let has_more = rows.len() > rows_asked;
        rows.truncate(rows_asked);
        let last = rows.last().filter(|_| has_more).and_then(|row| Uuid::parse_str(id(row)).ok());
        Paged { data: rows, next_cursor: last.map(|id| URL_SAFE_NO_PAD.encode(id.as_bytes())) }
    }

    fn rows(&self) -> u32 {
        self.limit.clamp(1, MOST_ROWS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_leads_to_the_row_it_came_from() {
        let ids: Vec<String> = (0..3).map(|_| Uuid::now_v7().to_string()).collect();
        let page = Page { cursor: None, limit: 2 };
        assert_eq!(page.after().unwrap(), "");
        assert_eq!(page.rows_to_read(), 3);
        let paged = page.cut(ids.clone(), String::as_str);
        assert_eq!(paged.data, ids[..2]);
        let next = Page { cursor: paged.next_cursor, limit: 2 };
        assert_eq!(next.after().unwrap(), ids[1]);
        assert_eq!(next.cut(ids[2..].to_vec(), String::as_str).next_cursor, None);
    }

    #[test]
    fn a_limit_out_of_range_is_taken_as_the_nearest() {
        for (limit, rows) in [(0, 2), (1, 2), (1_000, 1_001), (u32::MAX, 1_001)] {
            assert_eq!(Page { cursor: None, limit }.rows_to_read(), rows);
        }
    }

    #[test]
    fn a_made_up_cursor_is_refused() {
        for cursor in ["", "x", "not base64!", "AAAA", "' OR 1=1 --"] {
            let page = Page { cursor: Some(cursor.to_owned()), limit: 10 };
            assert!(matches!(page.after(), Err(StoreError::Invalid(_))), "{cursor}");
        }
    }
}
