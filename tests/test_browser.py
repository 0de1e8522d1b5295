"""What `browser` sees, on pages with and without faults."""

from browser import needs_browser, serve, visit

pytestmark = needs_browser


def test_sees_what_a_page_does(tmp_path):
    page = """<link rel=icon href="data:,"><p id=p></p><img src="there.svg"><img src="missing.png">
        <img src="http://other.test/x.png">
        <script>p.textContent = "ran" + "!"; console.error("said"); throw Error("thrown")</script>"""
    (tmp_path / "index.html").write_text(page)
    (tmp_path / "there.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    with serve(tmp_path) as root:
        seen = visit(f"{root}/index.html")
    assert "ran!" in seen.dom
    assert {*seen.requests} >= {f"{root}/there.svg", f"{root}/missing.png", "http://other.test/x.png"}
    assert {*seen.failed} == {f"{root}/missing.png", "http://other.test/x.png"}
    assert len(seen.console) == 2 and "said" in seen.console[0] and "thrown" in seen.console[1]


def test_sees_nothing_where_there_is_nothing(tmp_path):
    (tmp_path / "index.html").write_text("<link rel=icon href='data:,'><p>quiet</p>")
    with serve(tmp_path) as root:
        for dark in (False, True):
            seen = visit(f"{root}/index.html", width=400, dark=dark)
            assert "quiet" in seen.dom and not seen.console + seen.requests + seen.failed
