from corral.pool.machine import available_memory, usable_cores

MIB = 2**20


def machine(tmp_path, available_mib, cgroup="/"):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroups.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available_mib * 1024} kB\n")
    (proc / "self" / "cgroup").write_text(f"9:name=systemd:/x\n0::{cgroup}\n")
    return proc, cgroups


def limit(folder, limit, used, inactive_file=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive_file}\n")


def test_without_a_cgroup_the_systems_figure_counts(tmp_path):
    assert available_memory(*machine(tmp_path, 500)) == 500 * MIB


def test_a_cgroup_leaves_its_limit_less_what_it_uses_and_cannot_drop(tmp_path):
    proc, cgroups = machine(tmp_path, 500, "/app/web")
    limit(cgroups / "app" / "web", 300 * MIB, 200 * MIB, 50 * MIB)
    assert available_memory(proc, cgroups) == 150 * MIB


def test_the_tightest_cgroup_above_us_counts(tmp_path):
    proc, cgroups = machine(tmp_path, 500, "/app/web")
    limit(cgroups / "app" / "web", "max", 10 * MIB)
    limit(cgroups / "app", 100 * MIB, 90 * MIB)
    assert available_memory(proc, cgroups) == 10 * MIB


def test_an_overdrawn_cgroup_leaves_nothing(tmp_path):
    proc, cgroups = machine(tmp_path, 500, "/app")
    limit(cgroups / "app", 100 * MIB, 120 * MIB)
    assert available_memory(proc, cgroups) == 0


def test_this_machine_has_memory_and_cores():
    assert available_memory() > MIB and usable_cores() >= 1


def test_a_quota_of_one_and_a_half_cores_pays_for_at_most_two(tmp_path):
    proc, cgroups = machine(tmp_path, 500, "/app")
    (cgroups / "app").mkdir()
    (cgroups / "app" / "cpu.max").write_text("150000 100000\n")
    assert usable_cores(proc, cgroups) <= 2
    (cgroups / "app" / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(proc, cgroups) == 1
    (cgroups / "app" / "cpu.max").write_text("max 100000\n")
    assert usable_cores(proc, cgroups) == usable_cores()
