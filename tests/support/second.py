"""Second doors: tests of what another one proves already. `make test-slow` runs them alone.

The other, which `make test` or `make test-long` runs, stands beside each.
"""

import bisect

import pytest

BUILDS, CORPUS, DOCS = "test_activation_builds.py::", "test_corpus.py::", "test_docs.py::"
TOLD = f"{CORPUS}test_the_answer_is_that_of_pytorch_or_a_way_to_it_is_told"
EXAMPLES = f"{DOCS}test_examples_do_what_the_document_says"
SEVERAL = "test_several_tensors.py::"
ENDS = f"{BUILDS}test_what_the_network_ends_in_is_not_applied_again"
GRAPH = f"{BUILDS}test_an_onnx_graph_tells_what_it_ends_in"
CTRL_C = "test_interrupt.py::test_ctrl_c_is_one_line_and_130_u15"
LOG = "test_log_loss.py::"
PACKAGE, WSGI, BOXES = "test_package.py::", "test_wsgi.py::", "test_detection_page.py::"
DETECTOR = "test_detection_builds.py::test_inspect_names_the_task_and_what_cannot_be_told"
SEGMENTER = "test_segmentation_builds.py::test_inspect_names_the_task_whatever_heads_for_training_there_are"

WHOLE = frozenset(("browser", "builder", "cli", "docs", "http", "serving", "unit"))
"""The rooms of what is named here: where tests of all of them were collected, nothing may be missing."""

DOORS = {
    # W1, W3 to W7, U10: what is built of ResNets and of every ending, of which one of each kind stays
    f"{BUILDS}test_one_output_can_be_a_number": "test_tasks.py::test_a_regression_is_the_networks_number_w1",
    f"{BUILDS}test_the_softmax_over_a_checkpoint_is_said_and_can_be_declined": f"{TOLD}[multi-label]",
    f"{BUILDS}test_the_weights_of_a_body_without_its_head_make_features": f"{BUILDS}test_features_are_never_classes",
    f"{BUILDS}test_an_answer_does_not_depend_on_strangers[eager]":
        f"{BUILDS}test_an_answer_does_not_depend_on_strangers[auto]",
    f"{BUILDS}test_of_what_a_network_returns_the_user_says_what_is_served": f"{TOLD}[outputs in a tuple]",
    f"{BUILDS}test_networks_that_would_never_start_are_refused_when_they_are_built[NeedsCompany":
        f"{BUILDS}test_networks_that_would_never_start_are_refused_when_they_are_built[AlwaysDropping",
    f"{BUILDS}test_a_network_over_numbers_has_no_task_to_choose[activation-softmax]":
        f"{BUILDS}test_a_network_over_numbers_has_no_task_to_choose[task-embedding]",
    f"{ENDS}[LogSoftmax": "test_tasks.py::test_a_softmax_in_the_network_is_not_applied_again_w2[log-softmax-inside]",
    f"{ENDS}[Undecided": f"{ENDS}[Softmax",
    f"{ENDS}[OnePlaceHead": f"{ENDS}[Softmax",
    f"{GRAPH}[LogSoftmax": f"{GRAPH}[Softmax",
    f"{GRAPH}[Identity": f"{GRAPH}[Softmax",
    f"{TOLD}[ends in softmax]": f"{ENDS}[Softmax",
    f"{TOLD}[ends in log_softmax]": "test_tasks.py::test_a_softmax_in_the_network_is_not_applied_again_w2",
    f"{TOLD}[ends in sigmoid]": f"{ENDS}[Sigmoid",
    f"{BUILDS}test_what_may_be_features_is_asked": f"{BUILDS}test_features_are_never_classes",
    f"{BUILDS}test_one_output_is_never_a_softmax": f"{BUILDS}test_one_output_can_be_the_score_of_a_class",
    f"{TOLD}[one output]": f"{BUILDS}test_one_output_can_be_the_score_of_a_class",
    f"{TOLD}[a norm first]": f"{TOLD}[multi-label]",
    f"{SEVERAL}test_outputs_in_a_tuple_are_called_by_their_numbers_and_one_may_be_taken":
        f"{SEVERAL}test_every_output_of_a_dict_is_answered_by_its_key[onnxruntime]",
    f"{SEVERAL}test_every_output_of_a_dict_is_answered_by_its_key[eager]":
        f"{SEVERAL}test_every_output_of_a_dict_is_answered_by_its_key[onnxruntime]",
    f"{SEVERAL}test_the_command_line_names_shapes_by_input":
        f"{SEVERAL}test_a_network_of_two_inputs_takes_them_by_the_names_of_its_arguments[onnxruntime]",
    f"{SEVERAL}test_golden_samples_may_be_of_several_lengths":
        f"{SEVERAL}test_a_series_of_any_length_through_an_lstm[onnxruntime]",
    # files by path alone
    "test_any_file.py::test_weights_with_a_new_head_are_served_by_path_alone":
        "test_cli.py::test_a_fine_tuned_resnet_serves_with_its_own_classes",
    "test_cli.py::test_a_built_bundle_can_be_carried_elsewhere_and_served": f"{EXAMPLES}[README.md]",
    "test_cli.py::test_arch_args_reach_the_constructor":
        "test_cli.py::test_a_network_over_numbers_serves_rows_and_lists_of_rows",
    "test_any_file.py::test_weights_among_foreign_objects_need_a_word_too":
        "test_any_file.py::test_a_network_that_comes_with_its_code_needs_a_word_and_then_answers",
    "test_sources.py::test_code_that_own_code_imports_is_part_of_what_was_built_p14":
        "test_sources.py::test_a_build_that_is_killed_when_its_bundle_stands_has_listed_its_code_p14",
    "test_torchvision_ops.py::test_a_python_model_runs_a_detector_of_torchvisions[fasterrcnn":
        "test_torchvision_ops.py::test_a_python_model_runs_a_detector_of_torchvisions[ssdlite",
    "test_cli.py::test_the_third_recipe_as_a_network":
        "test_cli.py::test_a_network_over_numbers_serves_rows_and_lists_of_rows",
    "test_cli.py::test_an_own_network_is_served_by_eager_pytorch_too":
        "test_agreement.py::test_an_export_whose_small_output_is_wrong_is_not_served",
    "test_sources.py::test_a_limit_on_the_size_of_files_is_told_as_what_it_is_a19[default]":
        "test_sources.py::test_a_full_disk_is_told_as_what_it_is_a19",
    "test_sources.py::test_a_limit_on_the_size_of_files_is_told_as_what_it_is_a19[torch]":
        "test_sources.py::test_a_limit_on_the_size_of_files_is_told_as_what_it_is_a19[onnx]",
    "test_sources.py::test_a_cache_on_a_full_disk_is_told_as_what_it_is_a19":
        "test_sources.py::test_a_full_disk_is_told_as_what_it_is_a19",
    "test_without_torch.py::test_an_onnx_graph_is_built_without_torch_and_answers_as_onnx_runtime_u16[of_pictures]":
        "test_without_torch.py::test_an_onnx_graph_is_built_without_torch_and_answers_as_onnx_runtime_u16[of_numbers]",
    "test_torchvision_ops.py::test_a_class_of_ones_own_may_import_torchvision":
        "test_torchvision_ops.py::test_a_python_model_runs_a_detector_of_torchvisions",
    # servers
    "test_openapi.py::test_schemathesis_finds_nothing_at_any_task_w4":
        "test_openapi.py::test_schemathesis_finds_nothing_at_an_image_model_f45",
    "test_openapi.py::test_schemathesis_finds_nothing_at_a_python_model_f45":
        "test_openapi.py::test_schemathesis_finds_nothing_at_an_image_model_f45",
    "test_standstill.py::test_a_front_that_stood_longer_than_the_limit_answers_what_was_computed_meanwhile_a3[limits1]":
        "test_standstill.py::test_a_front_that_stood_longer_than_the_limit_answers_what_was_computed_meanwhile_a3[limits0]",
    "test_serve_processes.py::test_a_model_that_hangs_over_all_inputs_is_told_and_stays_ready_for_others_a2":
        "test_standstill.py::test_many_inputs_that_hang_do_not_make_the_model_refuse_the_others_a2[2]",
    "test_standstill.py::test_many_inputs_that_hang_do_not_make_the_model_refuse_the_others_a2[1]":
        "test_standstill.py::test_many_inputs_that_hang_do_not_make_the_model_refuse_the_others_a2[2]",
    "test_processes.py::test_a_loop_that_stood_still_takes_no_worker_for_one_that_hangs_a3[2.5]":
        "test_processes.py::test_a_loop_that_stood_still_takes_no_worker_for_one_that_hangs_a3[1.5]",
    "test_no_telemetry.py::test_the_doctor_p1": "test_no_telemetry.py::test_build_and_the_engines_trials_p1",
    f"{LOG}test_losing_the_log_costs_no_answer_p2_a21[left": f"{LOG}test_losing_the_log_costs_no_answer_p2_a21[unread",
    f"{LOG}test_losing_the_log_costs_no_answer_p2_a21[closed": f"{LOG}test_losing_the_log_costs_no_answer_p2_a21[full",
    f"{LOG}test_losing_the_log_costs_no_answer_p2_a21[limited": f"{LOG}test_losing_the_log_costs_no_answer_p2_a21[full",
    f"{LOG}test_nothing_is_lost_where_somebody_reads_p2[file":
        f"{LOG}test_nothing_is_lost_where_somebody_reads_p2[pipe",
    f"{LOG}test_nothing_is_lost_where_somebody_reads_p2[terminal":
        f"{LOG}test_nothing_is_lost_where_somebody_reads_p2[pipe",
    # other servers
    f"{WSGI}test_under_gunicorns_workers[flags0]": f"{WSGI}test_under_gunicorns_workers[flags1]",
    f"{WSGI}test_under_gunicorns_workers[flags2]": f"{WSGI}test_the_first_requests_after_a_fork_are_answered_p8",
    f"{WSGI}test_under_uwsgi_children_are_started_with_the_environments_python_u20[threads]":
        f"{WSGI}test_under_uwsgi_children_are_started_with_the_environments_python_u20[processes]",
    "test_no_telemetry.py::test_the_processes_of_a_service_p1[threads]":
        "test_no_telemetry.py::test_the_processes_of_a_service_p1[processes]",
    "test_systemd.py::test_a_unix_socket_of_systemd_is_served_and_left[2]":
        "test_systemd.py::test_a_unix_socket_of_systemd_is_served_and_left[1]",
    "test_systemd.py::test_it_tells_when_it_is_ready_lives_and_stops[True]":
        "test_systemd.py::test_it_tells_when_it_is_ready_lives_and_stops[False]",
    "test_asgi.py::test_what_was_received_is_answered_when_the_server_is_stopped[hypercorn]":
        "test_asgi.py::test_what_was_received_is_answered_when_the_server_is_stopped[uvicorn]",
    "test_server.py::test_a_signal_finishes_what_was_received_and_exits_0[2]":
        "test_server.py::test_a_signal_finishes_what_was_received_and_exits_0[15]",
    "test_server.py::test_a_second_start_reuses_the_cached_bundle":
        "test_cli.py::test_a_network_over_numbers_serves_rows_and_lists_of_rows",
    "test_cores.py::test_a_model_that_is_served_alone_has_as_many_workers_as_it_needs":
        "test_cores.py::test_a_flooded_model_gets_the_workers_that_it_may_have_and_gives_them_back",
    f"{LOG}test_it_starts_whatever_is_closed_or_full_u19[>&-]":
        f"{LOG}test_it_starts_whatever_is_closed_or_full_u19[<&- >&- 2>&-]",
    f"{LOG}test_answers_for_a_file_come_without_standard_error_u19[2>/dev/full]":
        f"{LOG}test_answers_for_a_file_come_without_standard_error_u19[>&- 2>&-]",
    # clients of others, and the page: one task of several, one screen of two
    "test_instances.py::test_hugging_faces_client_gets_masks_and_boxes":
        "test_detection.py::test_hugging_faces_client_gets_its_own_objects",
    "test_segmentation.py::test_hugging_faces_client_gets_its_own_masks":
        "test_platforms.py::test_hugging_face_is_answered_in_the_shape_of_the_task",
    "test_pictures.py::test_hugging_faces_client_gets_an_image":
        "test_platforms.py::test_hugging_face_is_answered_in_the_shape_of_the_task",
    f"{BOXES}test_boxes_are_drawn_over_the_picture_in_its_pixels[phone]":
        f"{BOXES}test_boxes_are_drawn_over_the_picture_in_its_pixels[desktop]",
    f"{BOXES}test_in_a_grid_whatever_lies_over_a_picture_has_the_pictures_place[points]":
        f"{BOXES}test_in_a_grid_whatever_lies_over_a_picture_has_the_pictures_place[masks]",
    f"{BOXES}test_the_picture_that_is_saved_has_masks_and_points[points":
        f"{BOXES}test_the_picture_that_is_saved_has_masks_and_points[masks",
    "test_masks_page.py::test_masks_lie_over_the_picture_and_can_be_switched_off[phone]":
        "test_masks_page.py::test_masks_lie_over_the_picture_and_can_be_switched_off[desktop]",
    # networks of a kind that another stands for
    f"{DETECTOR}[]": f"{DETECTOR}[module.]",
    f"{DETECTOR}[model.net.]": f"{DETECTOR}[module.]",
    f"{SEGMENTER}[-fcn_resnet50]": f"{SEGMENTER}[module.-lraspp_mobilenet_v3_large]",
    f"{SEGMENTER}[module.-fcn_resnet50]": f"{SEGMENTER}[module.-lraspp_mobilenet_v3_large]",
    "test_instance_networks.py::test_nothing_is_found_without_a_fault[KeypointRCNN]":
        "test_instance_networks.py::test_nothing_is_found_without_a_fault[MaskRCNN]",
    "test_shared_weights.py::test_the_graph_can_be_quantised":
        "test_engines.py::test_int8_is_calibrated_measured_and_kept",
    "test_shared_weights.py::test_u18_every_engine_answers_from_that_copy[elsewhere-eager]":
        "test_shared_weights.py::test_u18_every_engine_answers_from_that_copy[here-eager]",
    "test_sources.py::test_what_a_killed_build_leaves_is_cleared_away_a15[folder]":
        "test_sources.py::test_what_a_killed_build_leaves_is_cleared_away_a15[cache]",
    "test_sources.py::test_a_cache_that_cannot_be_written_is_one_line_that_names_the_setting_p7[/nowhere]":
        "test_sources.py::test_a_cache_that_cannot_be_written_is_one_line_that_names_the_setting_p7[]",
    f"{TOLD}[an ONNX graph with a state]": f"{TOLD}[an ONNX graph of two outputs]",
    f"{SEVERAL}test_a_series_of_any_length_through_an_lstm[eager]":
        f"{SEVERAL}test_a_network_of_two_inputs_takes_them_by_the_names_of_its_arguments[eager]",
    f"{SEVERAL}test_the_least_length_of_a_convolution_is_found_and_told[eager]":
        f"{SEVERAL}test_the_least_length_of_a_convolution_is_found_and_told[onnxruntime]",
    "test_any_file.py::test_a_network_that_comes_with_its_code_needs_a_word_and_then_answers[save_program]":
        "test_any_file.py::test_a_network_that_comes_with_its_code_needs_a_word_and_then_answers[save_script]",
    "test_throwaway_task.py::test_a_script_that_does_not_know_the_task_shows_the_same_card":
        "test_throwaway_task.py::test_a_task_of_two_files_is_served_shown_and_told",
    # commands and documents
    f"{PACKAGE}test_source_date_epoch_is_the_time_of_every_file":
        f"{PACKAGE}test_the_same_bundle_makes_the_same_folder",
    f"{PACKAGE}test_hadolint_finds_nothing_in_either": f"{PACKAGE}test_the_dockerfile_keeps_its_promises",
    f"{CTRL_C}[build, at once]": f"{CTRL_C}[build, while torch is imported]",
    f"{CTRL_C}[serve, while it builds]": f"{CTRL_C}[build, while torch is imported]",
    f"{CTRL_C}[serve, with threads that start]": f"{CTRL_C}[serve, while its workers start]",
    f"{CTRL_C}[bench, while engines load]": f"{CTRL_C}[predict]",
    f"{CTRL_C}[doctor]": f"{CTRL_C}[predict]",
    f"{EXAMPLES}[docs/models.md]":
        "test_models.py::test_versions_are_loaded_switched_and_unloaded_while_it_serves",
    f"{EXAMPLES}[README.md, every line]": f"{EXAMPLES}[README.md]",
    f"{EXAMPLES}[docs/client.md]": "test_client.py::",
    f"{EXAMPLES}[docs/kserve.md]": "test_kserve_v2.py::",
    f"{EXAMPLES}[docs/kubernetes.md]": "test_deploy.py::test_the_command_prints_manifests_and_how_they_were_derived",
    f"{EXAMPLES}[docs/operations.md]":
        "test_samples.py::test_a_python_model_is_held_to_the_outputs_that_were_stated",
    f"{EXAMPLES}[docs/pictures.md]": "test_segmentation.py::",
    f"{EXAMPLES}[docs/platforms.md]": "test_platforms.py::test_hugging_face_is_answered_in_the_shape_of_the_task",
    f"{EXAMPLES}[docs/quickstart.md]": f"{EXAMPLES}[README.md]",
    f"{EXAMPLES}[docs/protocols.md]": "test_openapi.py::test_schemathesis_finds_nothing_at_an_image_model_f45",
}  # fmt: skip
"""By the beginning of a test's name, from its file on: which it is, and which stays."""


def mark(items: list[pytest.Item]) -> None:
    """Mark the second ones slow. Raises `UsageError` where a whole run lacks one of them, or what stays for it."""
    names = {item: _named(item) for item in items}
    beginnings = tuple(DOORS)
    second = sorted({name for name in names.values() if name.startswith(beginnings)})
    for item, name in names.items():
        if name.startswith(beginnings):
            item.add_marker("slow")
    if {item.nodeid.split("/")[1] for item in items if "/" in item.nodeid} >= WHOLE:
        stay = sorted({*names.values()} - {*second})
        for slow, kept in DOORS.items():
            for missing in (slow,) * (not _any(second, slow)) + (kept,) * (not _any(stay, kept)):
                raise pytest.UsageError(f"tests/support/second.py names {missing}, which is no such test")


def _any(names: list[str], beginning: str) -> bool:
    """Whether a name begins so, of sorted ones."""
    at = bisect.bisect_left(names, beginning)
    return at < len(names) and names[at].startswith(beginning)


def _named(item: pytest.Item) -> str:
    """A test from its file on, whatever room it is in."""
    file, _, test = item.nodeid.partition("::")
    return f"{file.rpartition('/')[2]}::{test}"
