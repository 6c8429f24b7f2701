"""Definitions in source code: of many languages by example, of Python against its own parser, on any text."""

from __future__ import annotations

import ast
import itertools
import sysconfig
import textwrap
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.stages.contextual._parts import Part, Parts
from workbench.stages.contextual.definitions import LANGUAGES, definitions

PIECES = [
    "{",
    "}",
    "(",
    ")",
    ";",
    "\n",
    "\n    ",
    "class A",
    "def f():",
    "fn g(",
    "int h(int a)",
    " = ",
    "=>",
    "impl<T> X",
]
PIECES += [
    '"',
    "'",
    '"""',
    "`",
    "/*",
    "*/",
    "//",
    "#",
    "\\",
    'r#"',
    'R"(',
    "end",
    "@x",
    "template <",
    "type T",
    "\r",
    "é",
    "::",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=60).map("".join)


def tree(ending: str, text: str) -> list[str]:
    """Names of the definitions, each indented by its depth and followed by the lines it covers."""
    text = textwrap.dedent(text).strip("\n")
    shown, opened = [], []
    for part in sorted(definitions(text, LANGUAGES[ending]), key=lambda part: (part.start, -part.end)):
        opened = [end for end in opened if end > part.start]
        lines = [text.count("\n", 0, offset) + 1 for offset in (part.start, part.end)]
        shown.append(f"{'  ' * len(opened)}{part.name} {lines[0]}-{lines[1]}")
        opened.append(part.end)
    return shown


EXAMPLES = {
    "rust": (
        "rs",
        """
        /// A struct { in a comment
        pub struct Pool<'a, T> { items: &'a [T] }

        impl<'a, T: Clone> Drop for Pool<'a, T>
        where
            T: Send,
        {
            #[inline]
            pub(crate) unsafe fn drop(&mut self) {
                let open = '{';
                let text = r#"fn no() { "#;
                match self.items { Some(x) => { x() } _ => {} }
                for item in self.items { close(item) }
            }
        }
        mod tests { #[test] fn works() {} }
        """,
        ["struct Pool 2-2", "impl Drop for Pool 4-15", "  fn drop 9-14", "mod tests 16-16", "  fn works 16-16"],
    ),
    "c++": (
        "cpp",
        """
        #define LOOP(x) for (;;) {
        namespace net { namespace {
        template <typename T, class U>
        class EXPORT_API Socket final : public Base<T> {
         public:
          explicit Socket(int fd) : fd_(fd), open_(true) {}
          ~Socket() override { Close(); }
          bool operator==(const Socket& other) const noexcept { return fd_ == other.fd_; }
          int table[2] = { 1, 2 };
        };
        } }
        static std::vector<int> net::Parse(const std::string& text,
                                           char mark = '}')
        {
          if (text.empty()) { return {}; }
          std::for_each(text.begin(), text.end(), [](char c) { use(c); });
          return "}" + R"x(class No { )x";
        }
        TEST(Parser, HandlesEmpty) { EXPECT_TRUE(true); }
        """,
        [
            "namespace net 2-11",
            "  class Socket 4-10",
            "    Socket 6-6",
            "    ~Socket 7-7",
            "    operator== 8-8",
            "net::Parse 12-18",
            "TEST(Parser, HandlesEmpty) 19-19",
        ],
    ),
    "c with two heads for one body": (
        "c",
        """
        #ifdef WIDE
        int width(long a) {
        #else
        int width(int a) {
        #endif
            return a;
        }
        struct point origin = { 0, 0 };
        struct point *next(struct point *p) { return p; }
        """,
        ["width 2-4", "width 4-7", "next 9-9"],
    ),
    "java": (
        "java",
        '''
        @Entity(name = "x")
        public final class Hash extends Base implements Cloneable {
          private final int[] salts = new int[] { 1 };
          @Override
          public <T> List<T> all(Map<String, T> by) throws IOException {
            synchronized (this) { return new ArrayList<>() { }; }
          }
          enum Kind { A, B }
          String text = """
            class No { """;
        }
        ''',
        ["class Hash 2-11", "  all 5-7", "  enum Kind 8-8"],
    ),
    "go": (
        "go",
        """
        type Server struct {
            name string
        }
        func (s *Server) Serve(l net.Listener) error {
            defer func() { s.close() }()
            go func() { }()
            return nil
        }
        func main() { run(`{`) }
        """,
        ["type Server 1-3", "func Server.Serve 4-8", "func main 9-9"],
    ),
    "typescript": (
        "ts",
        """
        import { a } from './a'
        export interface Options { deep: boolean }
        export default class View extends Base {
          render(props: Props): Node {
            if (props.deep) { return `${'{'}` }
            items.map((item) => { draw(item) })
          }
        }
        export const load = async (url: string) => {
          return fetch(url)
        }
        exports.save = function (url) { }
        async function main() { }
        """,
        [
            "interface Options 2-2",
            "class View 3-8",
            "  render 4-7",
            "function load 9-11",
            "function save 12-12",
            "function main 13-13",
        ],
    ),
    "kotlin": (
        "kt",
        """
        data class Point(val x: Int, val y: Int = 0) {
            val far = x > 10
            fun moved(by: Int): Point {
                listOf(1).forEach { use(it) }
                return withContext(by) { this }
            }
        }
        """,
        ["class Point 1-7", "  fun moved 3-6"],
    ),
    "shell": ("sh", 'run() {\n  echo "}" # }\n}\nfunction stop { :; }\n', ["run 1-3", "function stop 4-4"]),
    "ruby": (
        "rb",
        """
        module Store
          class Shelf < Base
            def empty?
              @items.each do |item|
                puts "class No"
              end
            end

            def self.open(name) = new(name)
          end
        end
        """,
        ["module Store 1-11", "  class Shelf 2-10", "    def empty? 3-7", "    def self.open 9-9"],
    ),
    "lua": ("lua", "function Box:open(a)\n  --[[ function no()\n]]\n  return a\nend\n", ["function Box:open 1-5"]),
    "python": (
        "py",
        '''
        @decorate(
            "x")
        class A:
            """def no(): pass

        class No:
            """
            async def f(self, a=(
        1)):
                return "\\
        def no():"

        x = 1
        ''',
        ["class A 1-11", "  def f 8-11"],
    ),
}


@pytest.mark.parametrize(("ending", "text", "expected"), EXAMPLES.values(), ids=list(EXAMPLES))
def test_finds_the_definitions_of(ending: str, text: str, expected: list[str]) -> None:
    assert tree(ending, text) == expected


@given(TEXTS, st.sampled_from(sorted(LANGUAGES)))
def test_any_text_gives_spans_that_are_nested_or_apart(text: str, ending: str) -> None:
    found = definitions(text, LANGUAGES[ending])
    for part in found:
        assert 0 <= part.start < part.end <= len(text)
        assert part.name == " ".join(part.name.split())
        assert not text[part.start].isspace()
    for a, b in itertools.combinations(found, 2):
        first, second = sorted([a, b])
        assert second.start >= first.end or second.end <= first.end or second.start == first.start


@given(TEXTS)
def test_python_that_parses_has_the_definitions_of_its_parser(text: str) -> None:
    code = f"def f():\n    {text!r}\n    class A: pass\nx = 1\n"
    assert found_lines(code) == parsed_lines(code)


def found_lines(code: str) -> list[tuple[int, int, str]]:
    parts = definitions(code, LANGUAGES["py"])
    return sorted((part.start, code.count("\n", 0, part.end) + 1, part.name) for part in parts)


def parsed_lines(code: str) -> list[tuple[int, int, str]]:
    """Start, last line and name of each definition as `ast` sees it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = ast.parse(code)
    lines = code.split("\n")
    starts = [0, *itertools.accumulate(len(line) + 1 for line in lines)]
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
            indent = len(lines[first]) - len(lines[first].lstrip())
            kind = "class" if isinstance(node, ast.ClassDef) else "def"
            found.append((starts[first] + indent, node.end_lineno or 0, f"{kind} {node.name}"))
    return sorted(found)


@pytest.mark.slow
def test_agrees_with_the_parser_on_the_standard_library() -> None:
    checked = 0
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py")):
        if file.parent.name in ("site-packages", "test"):
            continue
        code = file.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        try:
            expected = parsed_lines(code)
        except (SyntaxError, ValueError):
            continue
        assert found_lines(code) == expected, file
        checked += 1
    assert checked > 100


@pytest.mark.parametrize("ending", ["rs", "cpp", "js", "py", "lua", "sh"])
@pytest.mark.parametrize(
    "unit", ["{", "(", "a(){", "class a {\n", "'", '"""', "/*", "impl<", "\n", "  def f():\n", "@a(", "a::"]
)
def test_a_long_text_of_one_thing_is_read(unit: str, ending: str) -> None:
    # What is not linear takes minutes here, and the limit of a test's time ends it.
    assert isinstance(definitions(unit * (20_000 // len(unit)), LANGUAGES[ending]), list)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["cpp", "rs", "py"])
@pytest.mark.parametrize("unit", ["{", "}\nint f(int a) {\n", "impl<T> a {\n", "/* '", "\nf("])
def test_a_megabyte_is_read(unit: str, ending: str) -> None:
    definitions(unit * (1_000_000 // len(unit)), LANGUAGES[ending])


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10)), max_size=8), st.integers(0, 25), st.integers(1, 9))
def test_parts_around_and_parts_that_begin(pairs: list[tuple[int, int]], start: int, length: int) -> None:
    kept: list[Part] = []
    for number, (first, size) in enumerate(pairs):
        part = Part(first, first + size, str(number))
        if all(
            part.start >= other.end or part.end <= other.start or (part.start > other.start and part.end <= other.end)
            for other in kept
        ):
            kept.append(part)
    parts = Parts(kept)
    assert parts.around(start) == [p.name for p in sorted(kept) if p.start <= start < p.end]
    assert parts.beginning(start, start + length) == [p.name for p in sorted(kept) if start < p.start < start + length]
