//! Times: what `now` is for the join, and the time of an event with the precision that it was written with.

use std::time::UNIX_EPOCH;

use super::event::Scalar;
use super::fields::TimeUnit;

/// The present, by two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Unix milliseconds, for what messages say of times.
    pub wall_ms: u64,
    /// Milliseconds of a clock that never steps, for waiting.
    pub steady_ms: u64,
}

/// When an event happened: a moment, or the second in which it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTime {
    /// Not before, in unix milliseconds.
    pub from_ms: u64,
    /// Not after, in unix milliseconds.
    pub to_ms: u64,
}

impl EventTime {
    /// A moment.
    pub fn at(ms: u64) -> Self {
        Self {
            from_ms: ms,
            to_ms: ms,
        }
    }

    /// A whole second.
    fn second(seconds: u64) -> Option<Self> {
        let from_ms = seconds.checked_mul(1_000)?;
        Some(Self {
            from_ms,
            to_ms: from_ms.checked_add(999)?,
        })
    }
}

/// Below this a number without a unit is seconds (until the year 5138).
const SECONDS_BELOW: u64 = 100_000_000_000;
/// Below this it is milliseconds.
const MILLISECONDS_BELOW: u64 = 100_000_000_000_000;
/// Below this it is microseconds, else nanoseconds.
const MICROSECONDS_BELOW: u64 = 100_000_000_000_000_000;

/// Reads a time: a number or its text in the given unit, or RFC 3339.
pub(super) fn read_time(scalar: &Scalar<'_>, unit: TimeUnit) -> Option<EventTime> {
    match scalar {
        Scalar::Unsigned(number) => whole(*number, unit),
        Scalar::Float(number) => fraction(*number, unit),
        Scalar::Text(text) => {
            if let Ok(number) = text.parse::<u64>() {
                return whole(number, unit);
            }
            let is_decimal = |byte: u8| byte.is_ascii_digit() || byte == b'.';
            if text.bytes().all(is_decimal) {
                return fraction(text.parse().ok()?, unit);
            }
            rfc3339(text)
        }
        Scalar::Absent | Scalar::Null | Scalar::Signed(_) | Scalar::Other => None,
    }
}

fn resolved(number: u64, unit: TimeUnit) -> TimeUnit {
    match unit {
        TimeUnit::Auto if number < SECONDS_BELOW => TimeUnit::Seconds,
        TimeUnit::Auto if number < MILLISECONDS_BELOW => TimeUnit::Milliseconds,
        TimeUnit::Auto if number < MICROSECONDS_BELOW => TimeUnit::Microseconds,
        TimeUnit::Auto => TimeUnit::Nanoseconds,
        TimeUnit::Seconds
        | TimeUnit::Milliseconds
        | TimeUnit::Microseconds
        | TimeUnit::Nanoseconds => unit,
    }
}

fn whole(number: u64, unit: TimeUnit) -> Option<EventTime> {
    match resolved(number, unit) {
        TimeUnit::Auto | TimeUnit::Seconds => EventTime::second(number),
        TimeUnit::Milliseconds => Some(EventTime::at(number)),
        TimeUnit::Microseconds => Some(EventTime::at(number / 1_000)),
        TimeUnit::Nanoseconds => Some(EventTime::at(number / 1_000_000)),
    }
}

fn fraction(number: f64, unit: TimeUnit) -> Option<EventTime> {
    if !number.is_finite() || number < 0.0 {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is not negative, and a cast of what is too large gives the largest"
    )]
    let to_whole = |number: f64| number as u64;
    let ms = match resolved(to_whole(number), unit) {
        TimeUnit::Auto | TimeUnit::Seconds => number * 1e3,
        TimeUnit::Milliseconds => number,
        TimeUnit::Microseconds => number / 1e3,
        TimeUnit::Nanoseconds => number / 1e6,
    };
    Some(EventTime::at(to_whole(ms)))
}

/// `2021-12-20T11:33:20.123456789Z`, or with an offset such as `+08:00` for the `Z`.
fn rfc3339(text: &str) -> Option<EventTime> {
    let (moment, offset_minutes) = match text.strip_suffix(['Z', 'z']) {
        Some(moment) => (moment, 0),
        None => {
            let (moment, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
            let (sign, offset) = match offset.split_at_checked(1)? {
                ("+", offset) => (1, offset),
                ("-", offset) => (-1, offset),
                _ => return None,
            };
            let (hours, minutes) = offset.split_once(':')?;
            let (hours, minutes): (i64, i64) = (hours.parse().ok()?, minutes.parse().ok()?);
            (moment, sign * (hours * 60 + minutes))
        }
    };
    let moment = humantime::parse_rfc3339_weak(moment).ok()?;
    let ms = moment.duration_since(UNIX_EPOCH).ok()?.as_millis();
    let ms = i64::try_from(ms)
        .ok()?
        .checked_sub(offset_minutes * 60_000)?;
    let ms = u64::try_from(ms).ok()?;
    if text.contains('.') {
        Some(EventTime::at(ms))
    } else {
        EventTime::second(ms / 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_unit() {
        let text = |text: &'static str| Scalar::Text(text.into());
        let second = (1_640_000_000_000, 1_640_000_000_999);
        let moment = (1_640_000_000_123, 1_640_000_000_123);
        for (scalar, unit, expected) in [
            (
                Scalar::Unsigned(1_640_000_000),
                TimeUnit::Auto,
                Some(second),
            ),
            (
                Scalar::Unsigned(1_640_000_000_123),
                TimeUnit::Auto,
                Some(moment),
            ),
            (
                Scalar::Unsigned(1_640_000_000_123_456),
                TimeUnit::Auto,
                Some(moment),
            ),
            (
                Scalar::Unsigned(1_640_000_000_123_456_789),
                TimeUnit::Auto,
                Some(moment),
            ),
            (Scalar::Unsigned(5), TimeUnit::Milliseconds, Some((5, 5))),
            (
                Scalar::Float(1_640_000_000.123_4),
                TimeUnit::Auto,
                Some(moment),
            ),
            (text("1640000000"), TimeUnit::Auto, Some(second)),
            (text("1640000000.1234"), TimeUnit::Auto, Some(moment)),
            (
                text("2021-12-20T11:33:20.123456789Z"),
                TimeUnit::Auto,
                Some(moment),
            ),
            (text("2021-12-20T11:33:20Z"), TimeUnit::Auto, Some(second)),
            (
                text("2021-12-20T19:33:20.123+08:00"),
                TimeUnit::Auto,
                Some(moment),
            ),
            (
                text("2021-12-20T10:33:20.123-01:00"),
                TimeUnit::Auto,
                Some(moment),
            ),
            (text("2021-12-20T11:33:20.123"), TimeUnit::Auto, None),
            (text("äöüäöü"), TimeUnit::Auto, None),
            (text("1.2.3"), TimeUnit::Auto, None),
            (text(""), TimeUnit::Auto, None),
            (Scalar::Signed(-1), TimeUnit::Auto, None),
            (Scalar::Float(-1.5), TimeUnit::Auto, None),
            (Scalar::Unsigned(u64::MAX), TimeUnit::Seconds, None),
            (Scalar::Other, TimeUnit::Auto, None),
        ] {
            let read = read_time(&scalar, unit).map(|time| (time.from_ms, time.to_ms));
            assert_eq!(read, expected, "{scalar:?} {unit:?}");
        }
    }
}
