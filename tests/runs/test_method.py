"""Method: what a method must say of itself, and how a user's own comes beside those of the suite."""

import functools
import types

import pytest

from adaprune.runs.method import METHODS, SELECTIVE, Method, register
from adaprune.runs.run import Run


def users_own(job):
    """A method as a user writes one."""


@pytest.fixture
def methods():
    """The table of methods, which is afterwards as it was."""
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


def defined(name, module):
    """A method whose function was defined in that module, a notebook's being ``__main__``."""
    space = {"__name__": module}
    exec(f"def {name}(job):\n    pass", space)
    return Method(space[name], line="x")


def test_a_function_and_a_line_will_do():
    method = Method(users_own, line="the smallest |w| stay")
    assert method.name == "users_own" and method.mask and method.weights_intact
    assert method.reads == ("head_learning_rate",) and not method.tuned and not method.paper


def test_the_papers_settings_are_the_tuned_ones_unless_they_are_given():
    tuned = {"learning_rate": 0.5}
    assert Method(users_own, line="x", tuned=tuned).paper == tuned
    assert Method(users_own, line="x", tuned=tuned, paper={"reach": 1.0}).paper == {"reach": 1.0}
    assert Method(users_own, line="x", tuned=tuned, paper={}).paper == {}


def test_every_method_of_the_suite_says_all_about_itself():
    for name, method in METHODS.items():
        assert method.name == name and method.function.__doc__ and len(method.line) < 120
        assert method.source or name in ("probe", "zero_shot", "majority")
        assert set(method.reads) <= set(SELECTIVE)


@pytest.mark.parametrize(
    "function",
    [None, "users_own", 3, types, functools.partial(users_own), [users_own]],
    ids=["None", "text", "number", "module", "partial", "list"],
)
def test_what_is_no_function_with_a_name_is_refused(function):
    with pytest.raises(TypeError, match="a method needs a named function from a Job to an Outcome, got "):
        Method(function, line="x")


def test_a_lambda_is_refused():
    with pytest.raises(ValueError, match="a method has its function's name, and '<lambda>' is not a name: use `def`"):
        Method(lambda job: None, line="x")


@pytest.mark.parametrize("line", ["", " \n", None, 3])
def test_a_method_without_its_line_is_refused(line):
    with pytest.raises(ValueError, match="method 'users_own' needs a line that says what it does, got "):
        Method(users_own, line=line)
    with pytest.raises(TypeError, match="line"):
        Method(users_own)


@pytest.mark.parametrize("name", ["learning_rat", "epochs", "step_rule"])
def test_a_field_to_read_that_is_none_of_those_is_refused(name):
    """A field that every method reads (epochs) need not be named, and one that is retired (step_rule) cannot be."""
    with pytest.raises(ValueError, match=f"method 'users_own' reads '{name}'; fields to .* are learning_rate, .*keep"):
        Method(users_own, line="x", reads=("learning_rate", name))


def test_a_registered_method_can_be_asked_for_and_its_settings_can_be_changed(methods):
    with pytest.raises(ValueError, match="method must be one of .*, got 'users_own'"):
        Run(method="users_own")
    first = Method(users_own, line="x")
    assert register(first) is first and Run(method="users_own").kind is first
    second = Method(users_own, line="the same function, set otherwise", reads=("learning_rate",))
    assert register(second) is second is Run(method="users_own").kind


def test_a_bare_function_is_refused_with_what_to_write(methods):
    with pytest.raises(TypeError, match=r"must be an adaprune.Method, got function: wrap .*Method\(my_function, line="):
        register(users_own)
    assert "users_own" not in methods


@pytest.mark.parametrize("module", ["mine", "__main__"])
@pytest.mark.parametrize("name", ["magnitude", "adaprune"])
def test_the_name_of_a_method_of_the_suite_is_refused(methods, name, module):
    before = METHODS[name]
    with pytest.raises(ValueError, match=f"there already is a method '{name}' .*: give your function another name"):
        register(defined(name, module))
    assert METHODS[name] is before


@pytest.mark.parametrize("module", ["__main__", "mine", "adaprune_mine"])
def test_a_notebooks_cell_or_a_module_can_be_run_again(methods, module):
    """The function is a new one then, of the same name and place."""
    first, second = defined("mine", module), defined("mine", module)
    register(first)
    assert first.function is not second.function and register(second) is METHODS["mine"] is second


SECOND = [("a", "b"), ("a", "__main__"), ("__main__", "a"), ("a", None), (None, None), ("adaprune.a", "adaprune.a")]


@pytest.mark.parametrize(("one", "other"), SECOND)
def test_a_second_function_of_one_name_is_refused(methods, one, other):
    """None: of no known place, as `exec` makes them."""
    first = register(defined("mine", one))
    with pytest.raises(ValueError, match="there already is a method 'mine'"):
        register(defined("mine", other))
    assert METHODS["mine"] is first and register(first) is first


def test_functions_within_functions_have_places_of_their_own(methods):
    def maker(job):
        def mine(job):
            """Another `mine`, `maker.<locals>.mine`."""

        return mine

    def mine(job):
        """One `mine`."""

    register(Method(mine, line="x"))
    with pytest.raises(ValueError, match="there already is a method 'mine'"):
        register(Method(maker(None), line="x"))


def test_two_partials_of_one_name_are_no_one_definition(methods):
    first, second = functools.partial(users_own), functools.partial(users_own)
    first.__name__ = second.__name__ = "mine"
    register(Method(first, line="x"))
    with pytest.raises(ValueError, match="there already is a method 'mine'"):
        register(Method(second, line="x"))
