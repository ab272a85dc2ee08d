"""The tutorial's way: TF1 graph and session, placeholders, feed_dict, Saver, .meta; untracked."""

import numpy as np
import tensorflow.compat.v1 as tf

from benchmarks.peers import BATCH, EVAL_EVERY, KEEP, RATES, SAVE_EVERY, Job, job, mark, scaled


def softmax(inputs: tf.Tensor) -> tf.Tensor:
    weights = tf.Variable(tf.truncated_normal([784, 10], stddev=0.01), name="weights")
    return tf.matmul(inputs, weights)


def cnn(inputs: tf.Tensor) -> tf.Tensor:
    def parameters(shape: list[int]) -> tuple[tf.Variable, tf.Variable]:
        weights = tf.Variable(tf.truncated_normal(shape, stddev=0.1), name="weights")
        return weights, tf.Variable(tf.constant(0.1, shape=shape[-1:]), name="bias")

    x = tf.reshape(inputs, [-1, 28, 28, 1])
    for shape in ([5, 5, 1, 32], [5, 5, 32, 64]):
        weights, bias = parameters(shape)
        x = tf.nn.relu(tf.nn.conv2d(x, weights, strides=[1, 1, 1, 1], padding="SAME") + bias)
        x = tf.nn.max_pool(x, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME")
    x = tf.reshape(x, [-1, 3136])
    weights, bias = parameters([3136, 1024])
    x = tf.nn.relu(tf.matmul(x, weights) + bias)
    weights, bias = parameters([1024, 10])
    return tf.matmul(x, weights) + bias


MODELS = {"softmax": softmax, "cnn": cnn}


def build(model: str) -> tuple[tf.Tensor, ...]:
    """Put the training job into the default graph; return inputs, labels, loss, train, accuracy."""
    inputs = tf.placeholder(tf.float32, [None, 784], name="inputs")
    labels = tf.placeholder(tf.float32, [None, 10], name="labels")
    logits = MODELS[model](inputs)
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=logits))
    train = tf.train.AdamOptimizer(RATES[model]).minimize(loss)
    equal = tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1))
    accuracy = tf.reduce_mean(tf.cast(equal, tf.float32))
    return inputs, labels, loss, train, accuracy


def flat(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return images as rows and labels one-hot."""
    x_train, y_train, x_test, y_test = arrays
    hot = np.eye(10, dtype=np.float32)
    return [x_train.reshape(-1, 784), hot[y_train], x_test.reshape(-1, 784), hot[y_test]]


def main(task: Job) -> None:
    x_train, y_train, x_test, y_test = flat(scaled())
    path = str(task.folder / "saved_model" / "model_ckpt")
    inputs, labels, loss, train, accuracy = build(task.model)
    for tensor in (inputs, labels, accuracy):
        tf.add_to_collection("train_var", tensor)
    test = {inputs: x_test, labels: y_test}
    saver = tf.train.Saver(max_to_keep=KEEP, keep_checkpoint_every_n_hours=1)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        mark("loop")
        for step in range(1, task.steps + 1):
            picked = np.random.randint(0, len(x_train), BATCH)
            feed = {inputs: x_train[picked], labels: y_train[picked]}
            value, _ = session.run([loss, train], feed)
            if step % EVAL_EVERY == 0:
                found = session.run(accuracy, test)
                print(f"Step: {step:04d}, Loss: {value:.5f}, Test_Acc: {found:.5f}")
            if step % SAVE_EVERY == 0:
                saver.save(session, path, global_step=step, write_meta_graph=False)
                saver.export_meta_graph(f"{path}.meta", collection_list=["train_var"])
    mark("restore")
    with tf.Graph().as_default(), tf.Session() as session:
        saver = tf.train.import_meta_graph(f"{path}.meta")
        saver.restore(session, f"{path}-{task.steps}")
        inputs, labels, accuracy = tf.get_collection("train_var")
        print("restored:", session.run(accuracy, {inputs: x_test, labels: y_test}))
    mark("leave")


if __name__ == "__main__":
    tf.disable_v2_behavior()
    main(job(__doc__))
