//! Finds the known name that a misspelt one probably means.

/// Longer names are not compared: nobody misspells a key into something this long.
const MAX_CHARS: usize = 80;

/// The candidate nearest to `name`, letter case aside, if it is near enough to be what was meant: a third of its
/// characters may differ.
pub(crate) fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let name: Vec<char> = name.chars().take(MAX_CHARS + 1).map(|c| c.to_ascii_lowercase()).collect();
    if name.is_empty() || name.len() > MAX_CHARS {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (distance(&name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (name.len().max(candidate.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many characters must be inserted, removed or replaced to make one from the other.
fn distance(name: &[char], candidate: &str) -> usize {
    let mut row: Vec<usize> = (0..=name.len()).collect();
    for (line, letter) in candidate.chars().map(|c| c.to_ascii_lowercase()).enumerate() {
        let mut diagonal = line;
        let mut left = line + 1;
        for (cell, own) in row.iter_mut().skip(1).zip(name) {
            let replaced = diagonal + usize::from(*own != letter);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = line + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        let of = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), b);
        assert_eq!(of("kitten", "sitting"), 3);
        assert_eq!(of("", "abc"), 3);
        assert_eq!(of("abc", ""), 3);
        assert_eq!(of("flaw", "lawn"), 2);
        assert_eq!(of("same", "same"), 0);
    }

    #[test]
    fn only_near_names_are_offered() {
        let known = ["gpucache", "gpucacheper", "max_batch_size"];
        assert_eq!(nearest("gpu_cache", known), Some("gpucache"));
        assert_eq!(nearest("GPUCACHEPER", known), Some("gpucacheper"));
        assert_eq!(nearest("max_batchsize", known), Some("max_batch_size"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest(&"g".repeat(4_000_000), known), None);
    }
}
