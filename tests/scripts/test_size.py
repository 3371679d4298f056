"""scripts/size.py: which package a file counts for, and what is too large."""

from size import find_problems, package_lines

BUDGETS = {"src/corral": 10, "src/corral/server": 100, "native": 50}


def test_files_count_for_their_package_however_deep_they_lie():
    files = {
        "src/corral/types.py": 7,
        "src/corral/server/app.py": 20,
        "src/corral/server/dialects/ollama.py": 30,
        "native/team.cpp": 30,
        "native/tests/test_team.cpp": 10,
    }
    assert package_lines(files, BUDGETS) == {"src/corral": 7, "src/corral/server": 50, "native": 40}


def test_a_package_at_its_budget_and_a_file_at_the_limit_pass():
    files = {"src/corral/server/app.py": 100}
    assert find_problems(files, package_lines(files, BUDGETS), 100, BUDGETS) == []


def test_what_is_over_is_named_with_its_remedy():
    files = {"src/corral/server/app.py": 101, "src/corral/page/page.py": 1}
    problems = find_problems(files, package_lines(files, BUDGETS), 100, BUDGETS)
    assert [problem.partition(":")[0] for problem in problems] == [
        "src/corral/page has no budget",
        "src/corral/server has 101 lines, its budget is 100",
        "src/corral/server/app.py has 101 lines, the limit is 100",
    ]
