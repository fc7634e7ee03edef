//! The pauses between the attempts of a call that nobody notifies.

use std::time::Duration;

/// Each pause is twice as long as the one before, up to the longest.
pub(crate) struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    pub(crate) fn new([first, longest]: [Duration; 2]) -> Self {
        Self { next: first, longest }
    }

    pub(crate) fn take(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest() {
        let mut pauses = Pauses::new([2, 15].map(Duration::from_millis));
        let taken = [(); 6].map(|()| pauses.take().as_millis());
        assert_eq!(taken, [2, 4, 8, 15, 15, 15]);
    }
}
