use super::*;
use proptest::prelude::*;

/// What is read of a page, written again.
fn again(page: &str) -> String {
    parse(page).unwrap().text()
}

fn wrong(page: &str) -> String {
    parse(page).unwrap_err().to_string()
}

#[test]
fn a_page_is_written_as_it_was_read() {
    let page = r#"# HELP a_total All \\ of\nthem.
# TYPE a_total counter
a_total 3
a_total{path="/x\"y\\z\n"} 4 1700000000000
# TYPE h histogram
h_bucket{le="0.5"} 1
h_bucket{le="+Inf"} 2
h_sum 1.5
h_count 2
# TYPE odd untyped
odd NaN
odd{a="b"} -Inf
# TYPE s summary
s{quantile="0.9"} 1e-9
s_sum 7
s_count 1
"#;
    assert_eq!(again(page), page);
    assert_eq!(again("\r\n# a comment\n  x { a = \"b\" , } 1\t\n"), "# TYPE x untyped\nx{a=\"b\"} 1\n");
}

#[test]
fn openmetrics_is_read_as_far_as_it_goes() {
    let page = "# TYPE r counter\n# UNIT r seconds\n# HELP r R.\nr_total{a=\"b\"} 1 1700000000.5 # {trace=\"t\"} 0.7 1.0\n\
                r_created{a=\"b\"} 1.7e9\n# TYPE build info\nbuild_info{v=\"1\"} 1\n# TYPE state stateset\nstate{state=\"a\"} 1\n\
                # TYPE q gaugehistogram\nq_bucket{le=\"+Inf\"} 2\n# EOF\n";
    assert_eq!(
        again(page),
        "# TYPE build_info gauge\nbuild_info{v=\"1\"} 1\n# TYPE q_bucket untyped\nq_bucket{le=\"+Inf\"} 2\n\
         # HELP r_total R.\n# TYPE r_total counter\nr_total{a=\"b\"} 1 1700000000500\n# TYPE state gauge\nstate{state=\"a\"} 1\n"
    );
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    for (page, what) in [
        ("a 1\nb", "line 2: a sample has no value"),
        ("a one", "line 1: a sample has no value"),
        ("1a 1", "line 1: this is no name of a metric"),
        ("{\"a.b\"} 1", "line 1: this is no name of a metric"),
        ("a{b=\"c} 1", "line 1: a label's value does not end"),
        ("a{b=c} 1", "line 1: a label's value is not quoted"),
        ("a{b=\"c\" d=\"e\"} 1", "line 1: labels do not end"),
        ("a{b=\"c\",b=\"d\"} 1", "line 1: a label is there twice"),
        ("a{b:c=\"\"} 1", "line 1: this is no name of a label"),
        ("a 1 2 3", "line 1: there is more after the sample"),
        ("a 1 later", "line 1: this is no time"),
        ("# TYPE a thing", "line 1: this is no type of a metric"),
        ("a 1\n# TYPE a counter", "line 2: a type comes after its samples, or twice"),
        ("<html>", "line 1: a sample has no value"),
    ] {
        assert_eq!(wrong(page), what, "{page}");
    }
}

#[test]
fn a_page_has_so_many_samples_at_most() {
    let page = "# TYPE a gauge\na 1\n\na 2\nb 3\nb 4\n";
    assert_eq!(parse_up_to(page, 4).unwrap().len(), 4);
    let error = parse_up_to(page, 2).unwrap_err().to_string();
    assert_eq!(error, "line 5: there are more samples than are taken");
}

#[test]
fn no_time_is_too_large() {
    let page = format!("a 1 {}\nb 1 {}\nc 1 -10\n", i64::MIN, i64::MAX);
    let read = parse(&page).unwrap();
    let times: Vec<_> = read.families.values().map(|family| family.samples[0].timestamp).collect();
    assert_eq!(times, [Some(i64::MIN), Some(i64::MAX), Some(-10_000)]);
}

fn merged(pages: &[&str]) -> (String, usize) {
    let (merged, left_out) = Exposition::merged(pages.iter().map(|page| parse(page).unwrap()));
    (merged.text(), left_out)
}

#[test]
fn the_first_word_on_a_series_holds() {
    assert_eq!(
        merged(&["# TYPE a counter\na 1\n", "# TYPE a counter\na 2\na{b=\"c\"} 3\n"]),
        ("# TYPE a counter\na 1\na{b=\"c\"} 3\n".to_owned(), 1)
    );
    // One page may say it twice too.
    assert_eq!(merged(&["a 1\na 2\n"]), ("# TYPE a untyped\na 1\n".to_owned(), 1));
}

#[test]
fn a_type_that_contradicts_the_first_gives_way() {
    for other in ["# TYPE a gauge\na{b=\"c\"} 2\n", "a{b=\"c\"} 2\n"] {
        assert_eq!(
            merged(&["# TYPE a counter\na 1\n", other, "# TYPE a counter\na{b=\"c\"} 3\n"]),
            ("# TYPE a counter\na 1\na{b=\"c\"} 3\n".to_owned(), 1)
        );
    }
    // Where the first says nothing, nothing is contradicted.
    assert_eq!(
        merged(&["a 1\n", "# TYPE a gauge\na{b=\"c\"} 2\n"]),
        ("# TYPE a untyped\na 1\na{b=\"c\"} 2\n".to_owned(), 0)
    );
    let histogram = "# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n";
    assert_eq!(merged(&[histogram, "# TYPE a gauge\na{b=\"c\"} 2\n"]), (histogram.to_owned(), 1));
    assert_eq!(
        merged(&[histogram, "# TYPE a_count counter\na_count{b=\"c\"} 2\n"]),
        (histogram.to_owned(), 1)
    );
}

#[test]
fn who_a_sample_is_from_is_not_for_it_to_say() {
    let mut page = parse("a{mesh=\"own\"} 1\na 2\n").unwrap();
    page.label(&[("mesh", "default"), ("zone", "east")]);
    assert_eq!(
        page.text(),
        "# TYPE a untyped\na{exported_mesh=\"own\",mesh=\"default\",zone=\"east\"} 1\na{mesh=\"default\",zone=\"east\"} 2\n"
    );
}

#[test]
fn what_was_never_counted_can_be_left_out() {
    let mut page =
        parse("# TYPE a counter\na 0\n# TYPE b counter\nb 0\nb{c=\"d\"} 1\n# TYPE g gauge\ng 0\n").unwrap();
    page.drop_unused();
    assert_eq!(page.text(), "# TYPE b counter\nb{c=\"d\"} 1\n# TYPE g gauge\ng 0\n");
}

proptest! {
    #[test]
    fn no_page_makes_it_panic(page in "(?s).{0,200}") {
        let _ = parse(&page);
    }

    #[test]
    fn what_it_writes_it_reads(page in r#"((# TYPE )?[a-c](_bucket|_sum|_total)?(\{[a-c]="[^"\\\n]{0,3}"\})? ?(counter|histogram|[0-9.e+-]{1,5})?\n){0,8}"#) {
        if let Ok(read) = parse(&page) {
            let (once, _) = Exposition::merged([read]);
            let text = once.text();
            let again = parse(&text);
            prop_assert!(again.is_ok(), "{text}");
            prop_assert_eq!(again.unwrap().text(), text);
        }
    }
}
