//! The CloudEvents attributes of a message (binary mode), the same for every bus but for the separator in
//! their names: `ce_id` on Kafka, `ce-id` on NATS.
//!
//! A tombstone has no data, and so, after the CloudEvents specification 1.0 §3.1, no content type.

use super::Outgoing;
use crate::wire::encoding::Encoding;

/// The version of the CloudEvents specification.
const SPEC_VERSION: &str = "1.0";

/// The headers of a message as (name, value), `separator` standing between `ce` and the attribute.
pub(super) fn headers(
    message: &Outgoing,
    separator: char,
    encoding: Encoding,
) -> Vec<(String, String)> {
    let attribute = |name: &str, value: &str| (format!("ce{separator}{name}"), value.to_owned());
    let mut headers = vec![
        attribute("id", &message.ce_id),
        attribute("source", &message.ce_source),
        attribute("type", message.ce_type),
        attribute("specversion", SPEC_VERSION),
        attribute("time", &rfc3339(message.time_ms)),
    ];
    if message.value.is_some() {
        headers.push((
            "content-type".to_owned(),
            encoding.content_type().to_owned(),
        ));
    }
    headers
}

/// A time in unix milliseconds as RFC 3339 in UTC. Years beyond 9999 are cut to its end, and times before
/// 1970 to its beginning: RFC 3339 has four digits for the year.
fn rfc3339(unix_ms: i64) -> String {
    const LAST_MS: i64 = 253_402_300_799_999;
    let ms = unix_ms.clamp(0, LAST_MS);
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, milli) = (of_day / 1_000 % 60, of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// Days since 1970-01-01 as a date of the Gregorian calendar: Howard Hinnant, "chrono-Compatible Low-Level
/// Date Algorithms", `civil_from_days`, for days that are not negative.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_date_does() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-5, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_640_000_000_123, "2021-12-20T11:33:20.123Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }
}
