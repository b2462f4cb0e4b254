//! Tells the user on stderr what happens: a progress bar on a terminal, a line now and then otherwise.
//!
//! `HPS_LOG` chooses: `off`, `warn`, or `info` (default; also for any other value).

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use hps_core::observer::{Observer, Progress};
use parking_lot::Mutex;

/// Between two progress lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Between two redraws of a bar.
const BAR_EVERY: Duration = Duration::from_millis(100);
const BAR_WIDTH: usize = 30;

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Level {
    Off,
    Warn,
    Info,
}

/// A step under way.
struct Step {
    name: String,
    started: Instant,
    shown: Instant,
}

/// Prints to stderr.
pub struct Console {
    level: Level,
    is_terminal: bool,
    step: Mutex<Option<Step>>,
}

impl Default for Console {
    /// As `HPS_LOG` says.
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// As `HPS_LOG` says.
    pub fn new() -> Self {
        let level = match std::env::var("HPS_LOG").as_deref() {
            Ok("off") => Level::Off,
            Ok("warn") => Level::Warn,
            _ => Level::Info,
        };
        Self { level, is_terminal: std::io::stderr().is_terminal(), step: Mutex::new(None) }
    }

    fn line(&self, text: &str) {
        let clear = if self.is_terminal { "\r\x1b[K" } else { "" };
        // A closed stderr must not disturb the caller.
        let _ = writeln!(std::io::stderr().lock(), "{clear}hps: {text}");
    }
}

impl Observer for Console {
    fn warn(&self, text: &str) {
        if self.level >= Level::Warn {
            self.line(&format!("warning: {text}"));
        }
    }

    fn info(&self, text: &str) {
        if self.level >= Level::Info {
            self.line(text);
        }
    }

    fn progress(&self, progress: Progress<'_>) {
        if self.level < Level::Info {
            return;
        }
        let now = Instant::now();
        let name = format!("{} {}", progress.what, progress.table);
        let mut current = self.step.lock();
        if current.as_ref().is_none_or(|step| step.name != name) {
            *current = Some(Step { name, started: now, shown: now });
        }
        let Some(step) = current.as_mut() else { return };
        let is_last = progress.done >= progress.total;
        let pause = if self.is_terminal { BAR_EVERY } else { LINE_EVERY };
        if !is_last && now.duration_since(step.shown) < pause {
            return;
        }
        step.shown = now;
        let seconds = now.duration_since(step.started).as_secs_f64();
        if is_last {
            // A short step is told by its result alone.
            if seconds >= 1.0 {
                self.line(&format!("{}: {} rows in {seconds:.1} s", step.name, progress.done));
            }
            *current = None;
        } else if self.is_terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[Khps: {}", bar(&step.name, &progress, seconds));
        } else {
            self.line(&status(&step.name, &progress, seconds));
        }
    }
}

fn seconds_left(progress: &Progress<'_>, seconds: f64) -> f64 {
    progress.total.saturating_sub(progress.done) as f64 * seconds / progress.done.max(1) as f64
}

/// What a terminal shows while a step is under way.
fn bar(step: &str, progress: &Progress<'_>, seconds: f64) -> String {
    let share = progress.done as f64 / progress.total.max(1) as f64;
    let full = (share * BAR_WIDTH as f64) as usize;
    let bar: String = (0..BAR_WIDTH).map(|i| if i < full { '#' } else { '-' }).collect();
    format!(
        "{step} [{bar}] {:3.0} %, {:.1} M rows/s, {:.0} s left",
        share * 100.0,
        progress.done as f64 / seconds.max(1e-3) / 1e6,
        seconds_left(progress, seconds)
    )
}

/// What a log gets now and then.
fn status(step: &str, progress: &Progress<'_>, seconds: f64) -> String {
    format!(
        "{step}: {:.0} %, {} of {} rows, {:.0} s left",
        progress.done as f64 / progress.total.max(1) as f64 * 100.0,
        progress.done,
        progress.total,
        seconds_left(progress, seconds)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_and_a_line_say_how_far_and_how_long() {
        let progress = Progress { what: "loading", table: "t", done: 2_000_000, total: 8_000_000 };
        let bar = bar("loading t", &progress, 4.0);
        assert_eq!(bar, "loading t [#######-----------------------]  25 %, 0.5 M rows/s, 12 s left");
        let status = status("loading t", &progress, 4.0);
        assert_eq!(status, "loading t: 25 %, 2000000 of 8000000 rows, 12 s left");
    }

    #[test]
    fn a_table_of_no_rows_is_no_division_by_zero() {
        let progress = Progress { what: "loading", table: "t", done: 0, total: 0 };
        assert!(bar("x", &progress, 0.0).contains("0 %"));
        assert!(status("x", &progress, 0.0).contains("0 %"));
    }
}
