"""Which tests always run, and which only for a sweep or a smoke test.

`pytest` runs everything but the sweeps, in minutes. `pytest -m slow` runs the rest of the sweeps: the same tests over more
networks, notebooks and processes. `pytest -m smoke` runs a little of everything, where another version of torch could differ.
"""

from __future__ import annotations

import zlib

ALL: tuple[str, ...] = ()
"""Whatever the parameters."""
NONE: tuple[str, ...] = ("",)
"""A test whose every case is slow."""
NETWORKS = ("resnet18", "deit_tiny_patch16_224")
"""Of `zoo`: convolutions with BatchNorm, attention."""
LAWS = (*NETWORKS, "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_atto")
"""Of `zoo`: depthwise convolutions, shuffled channels and layer scales, too."""
TOYS = (
    "residual", "concat", "depthwise_conv", "grouped_conv", "shuffle_op", "conv_transpose", "attention", "attention_torch",
    "gqa_fused", "rotary", "encoder_layer", "group_norm", "einsum", "embedding", "tied", "lstm", "masked", "aliased",
)  # fmt: skip
"""Of `toys`: each way in which axes meet."""

SMOKE: dict[str, tuple[str, ...]] = {
    # trace
    "test_axes.py::test_random_programs": ALL,
    "test_laws.py::test_forward_is_the_module_at_any_batch_size": NETWORKS,
    "test_random_nets.py::test_a_group_norm_mixes_the_positions_behind_the_channels": ALL,
    "test_recurrent.py::test_costs_are_those_of_every_matrix_at_every_step": ("lstm", "gru"),
    "test_transformers.py::test_forward_returns_the_model_output_class": ALL,
    "test_sizes.py::test_forward_is_the_module_at_other_sizes": ("bert", "recurrent"),
    # laws and costs
    "test_laws.py::test_law_1_nothing_is_changed_and_the_same_call_gives_the_same_bits": NETWORKS,
    "test_laws.py::test_law_2_keeping_all_changes_nothing": NETWORKS,
    "test_laws.py::test_law_3_removing_units_is_zeroing_them": NETWORKS,
    "test_laws.py::test_the_order_of_the_units_does_not_matter": NETWORKS,
    "test_laws.py::test_law_5_two_rounds_are_one": NETWORKS,
    "test_laws.py::test_law_6_cost_is_what_a_counter_counts_on_the_pruned_network": NETWORKS,
    "test_laws.py::test_law_7_a_budget_is_met_and_no_unit_too_many_goes": NETWORKS,
    "test_transformers.py::test_removing_is_zeroing_and_costs_are_exact": ALL,
    "test_profile.py::test_layers_add_up": ALL,
    # stats, select, compensate, apply
    "test_stats.py::test_golden_moments": ALL,
    "test_stats.py::test_every_site_is_what_its_layer_sees_all_calls_pooled": ALL,
    "test_scopes.py::test_isomorphic_groups_of_deit": ALL,
    "test_compensation.py::test_law_9_constant_units_are_removed_without_loss": ALL,
    "test_affine.py::test_law_9_affine_combinations_are_removed_without_loss": ALL,
    "test_pipeline.py::test_the_pipeline_is_its_steps": ALL,
    "test_forward.py::test_gradients_are_the_modules": ALL,
    "test_forward.py::test_vmap_over_an_ensemble": ALL,
    "test_forward.py::test_compiled_in_one_graph": ("mlp", "attention"),
    # modules and files
    "test_module.py::test_same_outputs_at_any_batch_size": ALL,
    "test_module.py::test_compile_of_it": ALL,
    "test_rebuild.py::test_the_original_class_at_new_sizes": ALL,
    "test_rebuild.py::test_a_rebuilt_class_can_be_scripted_and_exported": ALL,
    "test_export.py::test_every_format_at_every_batch_size": ALL,
    "test_export.py::test_filled_slices_in_torchscript": ALL,
    # training, commands, notebooks
    "test_training.py::test_it_learns_and_leaves_everything_else_alone": ALL,
    "test_cli.py::test_sparsify_and_hold": ALL,
    "test_notebooks.py::test_executed_afresh_it_says_what_is_committed": ("1_quick_start.ipynb",),
}
"""Test → the parameters with which it is a smoke test."""

SWEEPS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "test_laws.py::test_forward_is_the_module_at_any_batch_size",
            "test_laws.py::test_law_1_nothing_is_changed_and_the_same_call_gives_the_same_bits",
            "test_laws.py::test_law_2_keeping_all_changes_nothing",
            "test_laws.py::test_law_3_removing_units_is_zeroing_them",
            "test_laws.py::test_the_order_of_the_units_does_not_matter",
            "test_laws.py::test_law_5_two_rounds_are_one",
            "test_laws.py::test_law_6_cost_is_what_a_counter_counts_on_the_pruned_network",
            "test_laws.py::test_law_7_a_budget_is_met_and_no_unit_too_many_goes",
            "test_laws.py::test_law_8_split_and_shuffled_batches_give_the_same_stats",
            "test_laws.py::test_law_11_no_group_is_emptied",
        ),
        LAWS,
    ),
    "test_laws.py::test_law_9_constant_units_are_removed_without_loss": ("deit_tiny_patch16_224", "googlenet", "resnet18"),
    "test_laws.py::test_law_4_swin": NONE,
    "test_notebooks.py::test_executed_afresh_it_says_what_is_committed": (
        *("1_quick_start.ipynb", "2_spec_and_axes.ipynb", "guides/from_torch_pruning.ipynb"),
    ),
    "test_course.py::test_the_commands_of_the_course": NONE,
    "test_cli.py::test_torchrun_gives_what_one_process_gives": NONE,
    "test_phases.py::test_killed_between_and_within_phases_it_ends_with_the_same_bits": NONE,
    "test_export.py::test_compiled_ahead_of_time": NONE,
    "test_toys.py::test_traces_are_equal_values": TOYS,
    "test_criteria_masks.py::test_ones_change_nothing_and_a_zero_removes_the_unit": TOYS,
    "test_soft_cost.py::test_at_whole_sizes_it_is_the_cost": ("residual", "concat", "grouped_conv", "gqa_fused", "lstm"),
    "test_coverage.py::test_a_model_through_everything": ("timm-resnet10t", "transformers-llama", "transformers-bert"),
    "test_metrics.py::test_every_mac_with_a_weight_is_one_with_a_zero_once_all_weights_are": (
        "resnet18", "convnext_atto", "mobilenet_v2", "bert",
    ),
    "test_record.py::test_nothing_is_detected": NONE,
    "test_transformers.py::test_experts_and_their_hidden_width_are_groups": ("llama", "mixtral", "mamba"),
    "test_sync.py::test_sites_of_some_ranks_only": ("2 ranks",),
    "test_record.py::test_detection_with_its_post_processing": ("ssdlite320_mobilenet_v3_large",),
    "test_spec_views.py::test_every_group_has_its_own_place": (
        "mobilenet_v3_small", "convnext_atto", "encoder", "frozen", "tied",
    ),
    "test_metrics.py::test_macs_are_those_of_fvcore_on_contractions": ("resnet18", "convnext_atto", "mobilenet_v2"),
    **dict.fromkeys(
        (
            "test_transformers.py::test_sampled_forward_is_the_model_at_another_batch_size",
            "test_transformers.py::test_sampled_removing_is_zeroing",
            "test_transformers.py::test_sampled_order_of_units_changes_nothing",
            "test_transformers.py::test_sampled_costs_and_half_of_every_group",
        ),
        ("llama", "bert_masked", "t5"),
    ),
    "test_metrics.py::test_macs_and_params_are_those_of_torch": ("resnet18", "convnext_atto", "mobilenet_v2", "deit_tiny", "bert"),
    "test_kinds.py::test_kinds_of_real_architectures": ("resnet18", "vit", "mobilenet_v2"),
    "test_sync.py::test_shares_are_as_one_process_over_all_batches": ("2 ranks",),
    "test_phases.py::test_several_processes_do_what_one_does": ("2",),
    **dict.fromkeys(
        (
            "test_sizes.py::test_removing_is_zeroing_at_other_sizes",
            "test_sizes.py::test_costs_are_polynomials_in_the_sizes",
            "test_sizes.py::test_statistics_of_mixed_sizes",
        ),
        ("bert", "unet", "graph", "recurrent"),
    ),
    "test_op_toys.py::test_laws_of_ops_that_are_written_out": ("aten.hstack", "aten.kron", "aten.cross_entropy_loss", "aten.quantile"),
    **dict.fromkeys(
        (
            "test_source.py::test_it_does_what_forward_does_under_the_original_names",
            "test_source.py::test_it_is_plain_and_formatted",
            "test_source.py::test_gradients_are_those_of_the_class",
            "test_source.py::test_torchscript_and_export_take_it",
        ),
        ("unet", "recurrent", "odd"),
    ),
    "test_caches.py::test_encoder_decoders_are_exported_and_rebuilt": ("T5", "Whisper"),
    "test_classes.py::test_a_class_runs_at_half_of_its_sizes": (
        "RearrangeLayers", "InDict", "InDataclass", "SharedConfig", "InPartial", "InClosureOfSelf", "InClass", "InObject",
        "ModuleDicts", "ScaleOfTensor", "ScaleBehindBias", "ScaleOfKeys", "Correlation", "MinGPT", "Literal", "Time",
        "GroupNormCoincidence", "UNet", "DeadHead", "DeadBlocks", "OtherSelfInside", "structured", "half", "Steps",
    ),
    "test_libraries.py::test_a_model_of_transformers_inside_another_model": ("hidden",),
    "test_submodules.py::test_the_backbone_of_a_detector": NONE,
    "test_interfaces.py::test_a_transformer_with_fewer_tokens": ("llama", "gpt2_classes"),
}  # fmt: skip
"""Test that sweeps over many cases → the parameters that always run, or what their names begin with; the others are slow."""


SAMPLED: dict[str, int] = {
    "test_op_toys.py::test_laws": 5,
    "test_op_toys.py::test_sizes_follow_what_is_pruned": 4,
    **dict.fromkeys(
        (
            "test_toys.py::test_removing_is_zeroing_where_nothing_mixes",
            "test_toys.py::test_forward_is_the_module_bit_for_bit",
            "test_toys.py::test_the_model_comes_back_as_it_was",
            "test_toys.py::test_pruned_shapes_and_costs",
            "test_toys.py::test_keeping_all_is_the_identity",
            "test_toys.py::test_members_are_where_a_group_occurs",
        ),
        3,
    ),
    **dict.fromkeys(
        (
            "test_others.py::test_two_rounds_are_one",
            "test_others.py::test_the_order_of_the_units_does_not_matter",
            "test_others.py::test_removing_is_zeroing",
            "test_others.py::test_modules_give_what_forward_gives",
            "test_others.py::test_forward_is_the_module_and_changes_nothing",
            "test_others.py::test_cost_is_what_a_counter_counts",
        ),
        3,
    ),
    "test_scopes.py::test_equal_scores_stay_finite_and_equal": 4,
    "test_scopes.py::test_a_budget_is_met_by_the_fewest_of_the_order": 3,
}
"""Test that sweeps over many subjects → n, where about one subject in n always runs, the same in every test; the others are slow."""


def named(nodeid: str) -> tuple[str, str]:
    """Return a test's name, without the folder, and its parameters.

    >>> named("tests/test_laws.py::test_law_5_two_rounds_are_one[swin_t]")
    ('test_laws.py::test_law_5_two_rounds_are_one', 'swin_t')
    """
    name, _, parameters = nodeid.removeprefix("tests/").partition("[")
    return name, parameters.removesuffix("]")


def is_smoke(nodeid: str) -> bool:
    """Whether a test is a smoke test.

    >>> is_smoke("tests/test_export.py::test_filled_slices_in_torchscript")
    True
    >>> name = "tests/test_laws.py::test_law_5_two_rounds_are_one"
    >>> is_smoke(name + "[resnet18]"), is_smoke(name + "[swin_t]")
    (True, False)
    """
    name, parameters = named(nodeid)
    wanted = SMOKE.get(name)
    return wanted is not None and (wanted is ALL or parameters in wanted)


def is_slow(nodeid: str) -> bool:
    """Whether a test is a case of a sweep that does not always run.

    >>> name = "tests/test_sync.py::test_shares_are_as_one_process_over_all_batches"
    >>> is_slow(name + "[2 ranks-uneven]"), is_slow(name + "[3 ranks-uneven]")
    (False, True)
    """
    name, parameters = named(nodeid)
    if name in SAMPLED:
        subject = parameters.rpartition("-")[2]
        return subject not in TOYS and zlib.crc32(subject.encode()) % SAMPLED[name] != 0
    always = SWEEPS.get(name)
    if always is None:
        return False
    return always is NONE or not any(parameters == a or parameters.startswith(f"{a}-") for a in always)
