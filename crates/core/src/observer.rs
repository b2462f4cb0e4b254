//! How the library tells its user what it does: warnings, steps, progress. The bridge prints them.

/// How far a long step has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What is done, for example "loading".
    pub what: &'a str,
    /// The table it is done to.
    pub table: &'a str,
    /// Rows done.
    pub done: u64,
    /// Rows in all.
    pub total: u64,
}

/// Receives what happens while a store opens and serves. Called from several threads.
pub trait Observer: Send + Sync {
    /// Something the user should look into.
    fn warn(&self, text: &str);
    /// Something the user may like to know.
    fn info(&self, text: &str);
    /// Called every few thousand rows of a long step, and at its end (`done == total`).
    fn progress(&self, progress: Progress<'_>);
}

/// Says nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn warn(&self, _: &str) {}
    fn info(&self, _: &str) {}
    fn progress(&self, _: Progress<'_>) {}
}
