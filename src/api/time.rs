//! Instants as the API server keeps them.
//!
//! The wire drops what is finer than its format; these functions drop it first, so that a value read back equals
//! the value written. Both round down: a published expiry is never later than the lease's own.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

/// In whole seconds, for people.
pub fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// In microseconds, for holds.
pub fn micros(at: Timestamp) -> MicroTime {
    MicroTime(Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_read_back_equals_the_time_written() {
        let at: Timestamp = "2026-11-24T12:00:15.123456789Z".parse().unwrap();
        let time: Time = serde_json::from_value(serde_json::to_value(seconds(at)).unwrap()).unwrap();
        assert_eq!(time, seconds(at));
        let micro: MicroTime = serde_json::from_value(serde_json::to_value(micros(at)).unwrap()).unwrap();
        assert_eq!(micro, micros(at));
        assert!(time.0 < micro.0 && micro.0 < at);
    }
}
