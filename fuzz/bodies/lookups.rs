//! Text is judged the same in whatever pieces it comes, and what was once decided stays so.

use meridian_request_filter::Scanner;

pub(crate) fn run(bytes: &[u8]) {
    let whole = Scanner::scan(bytes);
    for size in [1, 3, 7, 64] {
        let (mut scanner, mut decided, mut read) = (Scanner::new(), 0, 0);
        for piece in bytes.chunks(size) {
            scanner.feed(piece);
            read += piece.len() as u64;
            assert!(decided <= scanner.decided() && scanner.decided() <= read);
            decided = scanner.decided();
        }
        assert_eq!(scanner.finish(), whole, "in pieces of {size}");
    }
}
