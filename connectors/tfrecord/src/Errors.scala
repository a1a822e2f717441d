package tfspark.tfrecord

import java.io.IOException

/** A file that is no TFRecord file, or a record that the schema does not describe; names the file and the offset. */
final class TFRecordException(message: String, cause: Throwable = null) extends IOException(message, cause)

/** What is wrong with the bytes of one record; whoever knows the file and the offset adds them. */
final class RecordFault(message: String) extends RuntimeException(message, null, false, false)
