import pytest

from jobs.settings import load_recipe, packaged_recipes
from pipelines.training.driver import tasks


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_every_recipe_of_ours_is_valid():
    names = packaged_recipes()
    assert set(names) == {"tiny", "tiny-gan", "small", "ltx2-19b", "ltx2-finetune", "ltx2-lora"}
    for name in names:
        load_recipe(name)


def test_the_tiny_recipe_has_every_task():
    assert set(load_recipe("tiny").tasks) == set(tasks())


def test_unknown_key_names_the_file_the_field_and_what_is_known(tmp_path):
    path = write(tmp_path, "synth: {clipz: 3}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: synth\.clipz: unknown key; known here: .*clips") as error:
        load_recipe(path)
    assert "\n" not in str(error.value)


def test_unknown_section_names_the_sections(tmp_path):
    with pytest.raises(ValueError, match=r"trian: unknown key; known here: caption, curate"):
        load_recipe(write(tmp_path, "trian: {}\n"))


def test_wrong_value_shows_the_field_and_the_value(tmp_path):
    with pytest.raises(ValueError, match=r"synth\.clips: .*integer.*'many'"):
        load_recipe(write(tmp_path, "synth: {clips: many}\n"))


@pytest.mark.parametrize("text", ["- a list\n", "{unclosed: [\n"])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        load_recipe(write(tmp_path, text))


def test_missing_recipe_names_ours():
    with pytest.raises(ValueError, match=r"no such file, nor a recipe of ours .*tiny"):
        load_recipe("tinny")


def test_a_task_is_laid_over_what_all_tasks_share(tmp_path):
    text = "train: {steps: 7, seed: 3}\ntasks: {dit: {steps: 9}}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert (recipe.for_task("dit").steps, recipe.for_task("dit").seed) == (9, 3)
    assert recipe.for_task("vocoder").steps == 7


def test_unknown_key_in_a_task_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tasks\.dit\.stepz: unknown key; known here: .*steps"):
        load_recipe(write(tmp_path, "tasks: {dit: {stepz: 9}}\n"))
