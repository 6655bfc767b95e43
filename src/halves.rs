//! Work on many items, in order, by two threads.

use std::thread;

/// Does the work on all items, the first half of them on a thread of its own; what it gives is in their order. Without a
/// thread left in the system, all is done here. It blocks until both are done.
pub(crate) fn in_halves<Item: Sync, Done: Send>(
    name: &str,
    items: &[Item],
    work: impl Fn(&[Item]) -> Vec<Done> + Sync,
) -> Vec<Done> {
    let (front, back) = items.split_at(items.len() / 2);
    thread::scope(|scope| {
        let helper = thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, || work(front));
        let mut behind = work(back);
        let mut done = match helper.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => work(front),
        };
        done.append(&mut behind);
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_done_in_order() {
        for count in [0, 1, 2, 7] {
            let items: Vec<_> = (0..count).collect();
            let done = in_halves("test", &items, |items| {
                items.iter().map(|item| item * 2).collect()
            });
            let expected: Vec<_> = (0..count).map(|item| item * 2).collect();
            assert_eq!(done, expected);
        }
    }
}
