//! What wrapper and guardian tell each other: lines on a socket that only these two have.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use rustix::process::Signal;
use rustix_libc_wrappers::process::SignalExt as _;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// To the guardian. The end of the stream: the wrapper is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// When to ask the command to end, and when to kill what is left, on our own clock.
    Until { stop_at: Duration, kill_at: Duration },
    /// For the command's group.
    Signal(Signal),
    /// Stop everything now.
    Stop,
}

/// To the wrapper. The end of the stream: the guardian is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    /// The command has ended with this code.
    Ended(u8),
    /// It is stopped because its time is over.
    Overdue,
    /// Nothing is left of it.
    Gone,
}

/// What the other side tells.
pub(super) struct Incoming<T> {
    /// `None`: it is gone.
    lines: Option<Lines<BufReader<OwnedReadHalf>>>,
    told: PhantomData<T>,
}

impl<T: FromStr> Incoming<T> {
    pub(super) fn new(stream: OwnedReadHalf) -> Self {
        Self { lines: Some(BufReader::new(stream).lines()), told: PhantomData }
    }

    /// The next of it; `None` once, when the other side is gone. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<T> {
        while let Some(lines) = &mut self.lines {
            match lines.next_line().await {
                Ok(Some(line)) => {
                    if let Ok(told) = line.parse() {
                        return Some(told);
                    }
                }
                Ok(None) | Err(_) => {
                    self.lines = None;
                    return None;
                }
            }
        }
        std::future::pending().await
    }
}

/// Tells the other side.
pub(super) async fn tell(stream: &mut OwnedWriteHalf, what: impl fmt::Display) -> io::Result<()> {
    stream.write_all(format!("{what}\n").as_bytes()).await
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Until { stop_at, kill_at } => write!(f, "until {} {}", stop_at.as_micros(), kill_at.as_micros()),
            Self::Signal(signal) => write!(f, "signal {}", signal.as_raw()),
            Self::Stop => write!(f, "stop"),
        }
    }
}

impl FromStr for Order {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let words: Vec<&str> = line.split(' ').collect();
        let moment = |word: &str| word.parse().map(Duration::from_micros).map_err(drop);
        match words[..] {
            ["until", stop_at, kill_at] => Ok(Self::Until { stop_at: moment(stop_at)?, kill_at: moment(kill_at)? }),
            ["signal", number] => number.parse().ok().and_then(Signal::from_raw).map(Self::Signal).ok_or(()),
            ["stop"] => Ok(Self::Stop),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(code) => write!(f, "ended {code}"),
            Self::Overdue => write!(f, "overdue"),
            Self::Gone => write!(f, "gone"),
        }
    }
}

impl FromStr for Report {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        match line.split_once(' ') {
            Some(("ended", code)) => code.parse().map(Self::Ended).map_err(drop),
            None if line == "overdue" => Ok(Self::Overdue),
            None if line == "gone" => Ok(Self::Gone),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (stop_at, kill_at) = (Duration::from_micros(12_345_678), Duration::from_secs(20));
        for order in [
            Order::Until { stop_at, kill_at },
            Order::Signal(Signal::USR1),
            Order::Signal(Signal::rt_max()),
            Order::Stop,
        ] {
            assert_eq!(order.to_string().parse(), Ok(order));
        }
        for report in [Report::Ended(143), Report::Overdue, Report::Gone] {
            assert_eq!(report.to_string().parse(), Ok(report));
        }
        assert_eq!(("until 1".parse::<Order>(), "ended 300".parse::<Report>()), (Err(()), Err(())));
    }
}
