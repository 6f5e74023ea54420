//! Sessions of which nobody knows yet whose they are.
//!
//! They cost memory and prove nothing, so there may be only so many. The eldest goes for the newest: whoever means it
//! has shown a certificate within milliseconds, and a crowd that never does shuts nobody out, wherever it calls from
//! (through an ingress a whole zone is one address).

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};
use tokio_util::sync::CancellationToken;

/// Of one worker.
const MOST: usize = 1_024;

/// The beginners of one worker.
#[derive(Default)]
pub struct Beginners {
    next: Cell<u64>,
    /// By age: the eldest first.
    present: RefCell<BTreeMap<u64, CancellationToken>>,
}

/// One of them. Dropped when it is known, or gone.
pub struct Beginner {
    number: u64,
    gone: CancellationToken,
    all: Rc<Beginners>,
}

impl Beginners {
    /// Takes one more in; the eldest is told to go where they are too many.
    pub fn begin(self: &Rc<Self>) -> Beginner {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let gone = CancellationToken::new();
        let mut present = self.present.borrow_mut();
        if present.len() >= MOST
            && let Some((_, eldest)) = present.pop_first()
        {
            eldest.cancel();
        }
        present.insert(number, gone.clone());
        Beginner { number, gone, all: self.clone() }
    }
}

impl Beginner {
    /// When it has to make room.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

impl Drop for Beginner {
    fn drop(&mut self) {
        self.all.present.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eldest_makes_room() {
        let all = Rc::new(Beginners::default());
        let mut held: Vec<_> = (0..MOST).map(|_| all.begin()).collect();
        assert!(held.iter().all(|one| !one.gone.is_cancelled()));
        // One became known: there is room again.
        drop(held.remove(1));
        let _next = all.begin();
        assert!(!held[0].gone.is_cancelled());
        let _last = all.begin();
        assert!(held[0].gone.is_cancelled() && !held[1].gone.is_cancelled());
        drop(held);
        assert_eq!(all.present.borrow().len(), 2);
    }
}
