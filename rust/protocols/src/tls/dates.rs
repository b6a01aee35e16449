//! Times in certificates and in rules, as seconds since 1970 in UTC; before that they are negative.

use super::der::{GENERALIZED_TIME, UTC_TIME};

const DAY: i64 = 86_400;

/// Read a certificate's time: UTCTime `YYMMDDHHMM[SS]Z` or GeneralizedTime `YYYYMMDDHHMMSSZ` (RFC 5280 section 4.1.2.5).
pub fn parse_der(tag: u8, text: &[u8]) -> Option<i64> {
    let (year, rest) = match tag {
        UTC_TIME => {
            let year = digits(text.get(..2)?)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text.get(2..)?)
        }
        GENERALIZED_TIME => (digits(text.get(..4)?)?, text.get(4..)?),
        _ => return None,
    };
    let at = |from: usize| rest.get(from..from + 2).and_then(digits);
    let seconds = match rest.get(8) {
        Some(b'Z') | None => 0, // forbidden by RFC 5280, seen in old certificates
        Some(_) => at(8)?,
    };
    compose([year, at(0)?, at(2)?, at(4)?, at(6)?, seconds])
}

/// Read a rule's time: `2015`, `2015-10`, `2015-10-22`, `2015-10-22 23`, `2015-10-22T23:59:59`; what is left out is least.
pub fn parse_rule(text: &str) -> Option<i64> {
    let mut fields = [0, 1, 1, 0, 0, 0];
    let mut count = 0;
    for part in text.trim().split(['-', 'T', ' ', ':']) {
        *fields.get_mut(count)? = digits(part.as_bytes())?;
        count += 1;
    }
    if count == 0 || text.trim().len() < 4 { None } else { compose(fields) }
}

fn digits(text: &[u8]) -> Option<i64> {
    if text.is_empty() || text.len() > 4 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
}

fn compose([year, month, day, hour, minute, second]: [i64; 6]) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(days_from_civil(year, month, day) * DAY + hour * 3600 + minute * 60 + second)
}

/// Days since 1970 of a date in the Gregorian calendar, counted in eras of 400 years that begin on 1 March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Write a time as EVE has it: `2015-12-16T00:00:00`.
pub fn iso(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_come_back_as_they_were() {
        for (text, iso_text) in [
            ("700101000000Z", "1970-01-01T00:00:00"),
            ("150212180727Z", "2015-02-12T18:07:27"),
            ("491231235959Z", "2049-12-31T23:59:59"),
            ("500228000000Z", "1950-02-28T00:00:00"),
            ("0002291200Z", "2000-02-29T12:00:00"),
        ] {
            assert_eq!(parse_der(UTC_TIME, text.as_bytes()).map(iso).as_deref(), Some(iso_text));
            assert_eq!(parse_rule(iso_text), parse_der(UTC_TIME, text.as_bytes()));
        }
        assert_eq!(parse_der(GENERALIZED_TIME, b"99991231235959Z").map(iso).as_deref(), Some("9999-12-31T23:59:59"));
        assert_eq!(parse_rule("2015"), parse_rule("2015-01-01T00:00:00"));
        for bad in ["", "15", "2015-13", "2015-01-01-", "soon"] {
            assert_eq!(parse_rule(bad), None, "{bad}");
        }
        assert_eq!(parse_der(UTC_TIME, b"15021218"), None);
    }
}
