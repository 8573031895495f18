import pytest

from loradash.domain.schedulers import SCHEDULERS, find_scheduler, scheduler_name


@pytest.mark.parametrize("name", SCHEDULERS)
def test_our_own_names_are_kept(name):
    assert find_scheduler(name) == (name, "")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        # A1111
        ("Euler a", "euler_a"), ("Euler", "euler"), ("Heun", "heun"), ("DPM2", "dpm2"),
        ("DPM2 a", "dpm2_a"), ("DPM2 a Karras", "dpm2_a_karras"), ("DPM++ 2M", "dpm++_2m"),
        ("DPM++ 2M Karras", "dpm++_2m_karras"), ("DPM++ 2M SDE", "dpm++_sde"),
        ("DPM++ 2M SDE Karras", "dpm++_sde_karras"), ("PLMS", "pndm"), ("DDIM", "ddim"),
        ("UniPC", "unipc"), ("LCM", "lcm"), ("Automatic", "default"),
        # ComfyUI
        ("euler_ancestral", "euler_a"), ("dpm_2", "dpm2"), ("dpm_2_ancestral", "dpm2_a"),
        ("dpmpp_2m", "dpm++_2m"), ("dpmpp_2m_sde", "dpm++_sde"), ("dpmpp_2m_sde_gpu", "dpm++_sde"),
        ("uni_pc", "unipc"), ("uni_pc_bh2", "unipc"), ("ddpm", "ddpm"), ("deis", "deis"),
        # kohya and ai-toolkit
        ("k_euler_a", "euler_a"), ("dpmsolver++", "dpm++_2m"), ("dpmsingle", "dpm++_2s"),
        ("dpm_2_a", "dpm2_a"), ("k_dpm_2", "dpm2"), ("custom_lcm", "lcm"),
        # diffusers
        ("DPMSolverMultistepScheduler", "dpm++_2m"), ("EulerDiscreteScheduler", "euler"),
        ("EulerAncestralDiscreteScheduler", "euler_a"), ("KDPM2DiscreteScheduler", "dpm2"),
        ("UniPCMultistepScheduler", "unipc"), ("PNDMScheduler", "pndm"),
    ],
)  # fmt: skip
def test_names_of_other_programs_mean_the_same_scheduler(text, name):
    assert find_scheduler(text) == (name, "")


@pytest.mark.parametrize(
    ("text", "name"),
    [("lms", "euler"), ("k_euler", "euler"), ("DPM++ 2S a", "dpm++_2s"), ("dpmsolver", "dpm++_2m")],
)
def test_what_is_not_there_is_replaced_by_the_nearest_and_said(text, name):
    found = find_scheduler(text)
    assert found.name == name
    assert repr(text) in found.note and name in found.note


def test_a_scheduler_for_flow_models_means_the_base_models_own():
    assert find_scheduler("flowmatch").name == "default"
    assert "flow models" in find_scheduler("FlowMatchEulerDiscreteScheduler").note


@pytest.mark.parametrize("text", ["unheard of", "euler ab", "++", "", "Эйлер"])
def test_an_unheard_of_name_is_refused(text):
    with pytest.raises(ValueError, match="isn't a scheduler"):
        find_scheduler(text)


def test_an_unheard_of_name_of_before_means_the_base_models_own():
    assert scheduler_name("unheard of") == "default"
