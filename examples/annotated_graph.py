"""Turn a model into a torch.fx graph with merged weights and print what was pruned at each node.

python examples/annotated_graph.py
"""

from lwptv_lightning import MergeRecipe, TaskVectors, merge_transform, zoo


def main() -> None:
    vectors = TaskVectors.open(zoo.base_path(), zoo.expert_paths())
    graph = merge_transform(zoo.create_model(), vectors, MergeRecipe("ties", ratio=0.5))
    for node in graph.graph.nodes:
        for layer in node.meta.get("lwptv", []):
            pruned = [task for task, kept in layer["kept"].items() if not kept]
            print(f"{layer['layer']:32} pruned for: {', '.join(pruned) or 'no task'}")


if __name__ == "__main__":
    main()
